"""Cuts waiting requests into jobs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

from config.fleet import Deployment, FleetConfig
from primarch_fleet.errors import DeadlineExceeded
from scheduler.deliver import Deliverer
from scheduler.flush import decide
from scheduler.job import Group, Job, Terms
from scheduler.pace import rate_pause
from scheduler.store import LANE, Store

logger = logging.getLogger(__name__)


class Aggregator:
    """Cuts batches by the flush policy. Many may run at once, anywhere.

    Args:
        work: Takes over each new job, leased to us, and brings it to its provider.
        new_id: Gives a job's id: at most 40 letters and digits, never the same twice.
    """

    def __init__(
        self,
        store: Store,
        config: FleetConfig,
        deliverer: Deliverer,
        work: Callable[[Job], Awaitable[None]],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._store = store
        self._config = config
        self._deliverer = deliverer
        self._work = work
        self._new_id = new_id

    async def aggregate(self) -> None:
        """Fail the requests whose deadline has passed, then cut what is to be cut, group by group.

        Raises the first error of a group when every group had its turn.
        """
        groups = await self._store.groups()
        results = await asyncio.gather(*map(self._group, groups), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def _group(self, group: Group) -> None:
        for request in await self._store.overdue(group):
            error = DeadlineExceeded("deadline: it passed before a batch was cut")
            await self._deliverer.fail(request, error, group)
        while (job := await self._cut(group)) is not None:
            await self._work(job)

    async def _cut(self, group: Group) -> Job | None:
        cut = decide(await self._store.waiting(group), self._config.batch, await self._store.now())
        if cut is None or await self._paused(group):
            return None
        terms = self._terms(group)
        if terms is None:
            logger.error(
                "no deployment serves %s any more", group, extra={"action": "batch_group_unserved"}
            )
            return None
        limit = (await self._store.pause(str(group))).limit or cut.requests
        cut = cut._replace(requests=min(cut.requests, limit))
        return await self._store.claim(group, cut, self._config.batch, terms, self._new_id())

    async def _paused(self, group: Group) -> bool:
        now = await self._store.now()
        names = (LANE, group.provider, str(group), rate_pause(group))
        pauses = [await self._store.pause(name) for name in names]
        return any(pause.until > now for pause in pauses)

    def _terms(self, group: Group) -> Terms | None:
        for deployment in self._config.deployments:
            if deployment.batch and _serves(deployment, group):
                return Terms(
                    deployment=deployment.id,
                    upstream=deployment.upstream,
                    price=deployment.price.times(self._config.batch.discount),
                    list_price=self._config.list_price(group.model),
                    simulated=self._config.providers[group.provider].simulated,
                )
        return None


def _serves(deployment: Deployment, group: Group) -> bool:
    return (deployment.provider, deployment.model) == (group.provider, group.model)
