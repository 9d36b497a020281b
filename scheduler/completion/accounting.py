"""Reserves and settles the budgets of batch requests, if this process has an accountant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from config.inline_accounts import receipt_provider
from primarch_fleet.errors import FleetError
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request
from scheduler.model.job import Job, ParkedRequest
from tasks import services
from tasks.accounting import DroppedAnswer

#: The `run` of a request that was not in a job when it left the lane.
UNSENT = "unsent"


async def reserve(
    requests: Mapping[str, Request], prompts: Mapping[str, PromptSize]
) -> Mapping[str, FleetError]:
    """Reserve what requests can cost on the batch lane. May be repeated.

    Args:
        requests: By task id.
        prompts: The sizes of their prompts.

    Returns:
        The refusals, by task id.
    """
    accountant = services.current().accountant
    if accountant is None:
        return {}
    return await accountant.reserve_many("batch", requests, prompts)


async def settle(run: str, costs: Iterable[tuple[ParkedRequest, int]]) -> None:
    """Count what requests have cost, in nano-dollars, and return what was reserved for them.

    Args:
        run: The job that they were in, or UNSENT. A request counts once for each run.
    """
    accountant = services.current().accountant
    if accountant is not None:
        await accountant.settle_many((*parked.payer, run, cost) for parked, cost in costs)


async def settle_dropped(payer: tuple[str, str], job: Job, request: str, cost: int) -> None:
    """Count an answer to a request that had left its job, in the cost report too.

    Raises:
        redis.RedisError: The cost report could not be written; the call may be repeated.
    """
    accountant = services.current().accountant
    if accountant is not None:
        await accountant.settle(*payer, job.intent, cost)
    await _report(payer[0], job, request, cost)


async def settle_failed(parked: ParkedRequest, job: Job, request: str, cost: int) -> None:
    """Count an answer whose generation failed, in the cost report too; its request stays reserved.

    Raises:
        redis.RedisError: The cost report could not be written; the call may be repeated.
    """
    tenant_id, task_id = parked.payer
    accountant = services.current().accountant
    if accountant is not None:
        # Under the task's own id it would return the reservation, and the request may be retried.
        await accountant.settle(tenant_id, f"{task_id}:failed", job.intent, cost)
    await _report(tenant_id, job, request, cost)


async def _report(tenant_id: str, job: Job, request: str, cost: int) -> None:
    """Add the cost of an answer that no request gets to the cost report, once."""
    process = services.current()
    if process.cost_recorder is not None:
        answer = DroppedAnswer(
            tenant_id=tenant_id,
            lane="batch",
            provider=receipt_provider(job.group.provider),
            model=job.terms.upstream,
            cost=cost,
            batch=job.intent,
            answer_id=request,
        )
        await process.cost_recorder.add_dropped(answer)
