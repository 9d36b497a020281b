"""Cuts waiting requests into jobs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

from config.fleet import Deployment, FleetConfig
from primarch_fleet.errors import DeadlineExceeded
from scheduler.completion.completer import Completer
from scheduler.completion.withdrawal import Withdrawal
from scheduler.jobs.flush_policy import flush, promote
from scheduler.model.job import Job, JobPricing, RequestGroup
from scheduler.store.pauses import WHOLE_LANE, pause_names
from scheduler.store.store import Store

logger = logging.getLogger(__name__)


class Aggregator:
    """Cuts batches by the flush policy. Many may run at once, anywhere.

    Args:
        work: Takes over each new job, leased to us, and brings it to its provider.
    """

    def __init__(
        self,
        store: Store,
        config: FleetConfig,
        deliverer: Completer,
        exit: Withdrawal,
        work: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._store = store
        self._config = config
        self._deliverer = deliverer
        self._exit = exit
        self._work = work

    async def aggregate(self) -> None:
        """Group by group: fail the requests whose deadline has passed, promote those that cannot
        wait for a batch, cut what is to be cut.

        Raises the first error of a group when every group had its turn.
        """
        await self._exit.resume()
        groups = await self._store.groups()
        results = await asyncio.gather(*map(self._group, groups), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def _group(self, group: RequestGroup) -> None:
        late = await self._store.with_deadline_until(group, await self._store.now())
        error = DeadlineExceeded("deadline: it passed before a batch was cut")
        await self._deliverer.fail(dict.fromkeys(late, error), group)
        await self._promote(group)
        while (job := await self._cut(group)) is not None:
            await self._work(job)

    async def _promote(self, group: RequestGroup) -> None:
        now, waiting = await self._store.now(), await self._store.backlog(group)
        promotion = promote(waiting, self._config.batch, now)
        if promotion is not None:
            requests = await self._store.with_deadline_until(group, promotion.until)
            await self._exit.promote(requests, group, promotion.reason)

    async def _cut(self, group: RequestGroup) -> Job | None:
        waiting = await self._store.backlog(group)
        if not waiting.requests:
            return None
        terms = self._terms(group)
        if terms is None:
            logger.error(
                "no deployment serves %s any more", group, extra={"action": "batch_group_unserved"}
            )
            return None
        now, policy = await self._store.now(), self._config.batch
        cut = flush(waiting, policy, now, terms.token_budget)
        held = [await self._store.pauses.get(name) for name in (WHOLE_LANE, *pause_names(group))]
        if cut is None or any(pause.until > now for pause in held):
            return None
        limits = [pause.limit for pause in held if pause.limit]
        cut = cut._replace(requests=min([cut.requests, *limits]))
        return await self._store.create_job(group, cut, policy, terms, uuid.uuid4().hex)

    def _terms(self, group: RequestGroup) -> JobPricing | None:
        for deployment in self._config.deployments:
            if deployment.batch and _serves(deployment, group):
                return JobPricing(
                    deployment=deployment.id,
                    upstream=deployment.upstream,
                    price=deployment.price.scaled(self._config.batch.discount),
                    list_price=self._config.list_price(group.model),
                    simulated=self._config.providers[group.provider].simulated,
                    token_budget=self._budget(deployment),
                )
        return None

    def _budget(self, deployment: Deployment) -> int:
        limit = deployment.batch_enqueued_token_limit or 0
        return int(limit * self._config.batch.token_share)


def _serves(deployment: Deployment, group: RequestGroup) -> bool:
    return (deployment.provider, deployment.model) == (group.provider, group.model)
