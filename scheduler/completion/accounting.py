"""What the batch lane's requests cost their tenants, if this process has budgets to charge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from primarch_fleet.contract import Lane, Request
from primarch_fleet.errors import FleetError
from scheduler.model.job import Job, ParkedRequest
from tasks.accounting import current_accountant
from workers.observability.cost_report import Row, the_costs

#: The run of a request that left the lane before a batch was ordered for it.
UNSENT = "unsent"


async def reserve(lane: Lane, parked: Iterable[ParkedRequest]) -> Mapping[str, FleetError]:
    """Reserve what requests can cost, as often as one likes; the refusals, by their tasks' ids."""
    charges = current_accountant()
    if charges is None:
        return {}
    requests: dict[str, Request] = {one.context["id"]: one.parse() for one in parked}
    return await charges.reserve_many(lane, requests)


async def settle(run: str, costs: Iterable[tuple[ParkedRequest, int]]) -> None:
    """Count what requests have cost, in micro-dollars, and give back what was reserved for them.

    Args:
        run: The job that they were in, or UNSENT: a request is counted once in each.
    """
    charges = current_accountant()
    if charges is not None:
        await charges.settle_many((*one.payer, run, cost) for one, cost in costs)


async def settle_dropped(payer: tuple[str, str], job: Job, request: str, cost: int) -> None:
    """Count an answer that came for a request after it had left, in the report of costs too.

    Raises redis.RedisError if the report cannot be written; it may be repeated then.
    """
    charges, costs = current_accountant(), the_costs()
    if charges is not None:
        await charges.settle(*payer, job.intent, cost)
    if costs is not None:
        row = Row(payer[0], "batch", job.group.provider, job.terms.upstream)
        await costs.add_dropped(row, cost, f"{job.intent}:{request}")
