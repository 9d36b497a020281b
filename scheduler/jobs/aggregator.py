"""Creates jobs of the requests that wait."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

from config.fleet import FleetConfig
from config.provider import Deployment
from primarch_fleet.errors import DeadlineExceeded
from scheduler.completion.completer import Completer
from scheduler.completion.withdrawal import Withdrawal
from scheduler.jobs.flush_policy import flush, promote
from scheduler.model.job import Job, JobPricing, RequestGroup
from scheduler.store.pauses import WHOLE_LANE, pause_names
from scheduler.store.store import Store

logger = logging.getLogger(__name__)


class Aggregator:
    """Creates jobs by the flush policy. Any number may run at once, on any machine.

    Args:
        run_job: Takes over each new job, leased to this scheduler, and submits it.
    """

    def __init__(
        self,
        store: Store,
        config: FleetConfig,
        completer: Completer,
        withdrawal: Withdrawal,
        run_job: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._store = store
        self._config = config
        self._completer = completer
        self._withdrawal = withdrawal
        self._run_job = run_job

    async def aggregate(self) -> None:
        """Resume interrupted withdrawals, then handle every group.

        Fails the requests whose deadline has passed, promotes those that cannot wait for a batch,
        and creates the jobs that are due. Raises the first error of a group after all groups were
        handled.
        """
        await self._withdrawal.resume()
        groups = await self._store.groups()
        results = await asyncio.gather(*map(self._aggregate_group, groups), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def _aggregate_group(self, group: RequestGroup) -> None:
        late = await self._store.with_deadline_until(group, await self._store.now())
        error = DeadlineExceeded("deadline: it passed before a batch was created")
        await self._completer.fail(dict.fromkeys(late, error), group)
        await self._promote(group)
        while (job := await self._create_job(group)) is not None:
            await self._run_job(job)

    async def _promote(self, group: RequestGroup) -> None:
        now, backlog = await self._store.now(), await self._store.backlog(group)
        promotion = promote(backlog, self._config.batch, now)
        if promotion is not None:
            requests = await self._store.with_deadline_until(group, promotion.until)
            await self._withdrawal.promote(requests, group, promotion.reason)

    async def _create_job(self, group: RequestGroup) -> Job | None:
        backlog = await self._store.backlog(group)
        if not backlog.requests:
            return None
        terms = self._terms(group)
        if terms is None:
            logger.error(
                "no deployment serves group %s", group, extra={"action": "batch_group_unserved"}
            )
            return None
        now, policy = await self._store.now(), self._config.batch
        decision = flush(backlog, policy, now, terms.token_budget)
        pauses = [await self._store.pauses.get(name) for name in (WHOLE_LANE, *pause_names(group))]
        if decision is None or any(pause.until > now for pause in pauses):
            return None
        limits = [pause.limit for pause in pauses if pause.limit]
        decision = decision._replace(requests=min([decision.requests, *limits]))
        return await self._store.create_job(group, decision, policy, terms, uuid.uuid4().hex)

    def _terms(self, group: RequestGroup) -> JobPricing | None:
        for deployment in self._config.deployments:
            if deployment.batch and _serves(deployment, group):
                token_limit = deployment.batch_enqueued_token_limit or 0
                return JobPricing(
                    deployment=deployment.id,
                    upstream=deployment.upstream,
                    price=self._config.rates(deployment).in_batches(),
                    list_price=self._config.list_price(group.model),
                    simulated=self._config.providers[group.provider].simulated,
                    token_budget=int(token_limit * self._config.batch.token_share),
                )
        return None


def _serves(deployment: Deployment, group: RequestGroup) -> bool:
    return (deployment.provider, deployment.model) == (group.provider, group.model)
