"""Creates jobs of the requests that wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from config.fleet import FleetConfig
from primarch_fleet.errors import DeadlineExceeded
from scheduler.completion.completer import Completer
from scheduler.jobs.flush_policy import flush, promote
from scheduler.jobs.pricing import pricing_of
from scheduler.model.job import Job, RequestGroup
from scheduler.promotion.withdrawal import Withdrawal
from scheduler.store.batch_pauses import WHOLE_LANE, pause_names
from scheduler.store.batch_store import Store
from scheduler.store.server import Recovery

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
        run_job: Callable[[Job], Awaitable[object]],
    ) -> None:
        self._store = store
        self._config = config
        self._completer = completer
        self._withdrawal = withdrawal
        self._run_job = run_job
        # Runs that overlap would share the requests of one full batch between two jobs.
        self._creating = asyncio.Lock()

    async def aggregate(self, recoveries: Mapping[str, Recovery]) -> None:
        """Resume interrupted withdrawals, then handle every group.

        Fails the requests whose deadline has passed, promotes those that cannot wait for a batch,
        and creates the jobs that are due. Raises the first error of a group after all groups were
        handled.

        Args:
            recoveries: The accounts that must not create a batch, see `OrphanSearch.recover`.
        """
        await self._withdrawal.resume()
        results = await asyncio.gather(
            *(
                self._aggregate_group(group, recoveries.get(group.provider))
                for group in await self._store.groups()
            ),
            return_exceptions=True,
        )
        for error in results:
            if error is not None:
                raise error

    async def _aggregate_group(self, group: RequestGroup, recovery: Recovery | None) -> None:
        """Handle a group; while its account recovers, requests may be in a batch already."""
        late = await self._store.with_deadline_until(group, await self._store.now())
        error = DeadlineExceeded("deadline: it passed before a batch was created")
        await self._completer.fail(dict.fromkeys(late, error), group)
        if recovery is None or recovery.scans:
            await self._promote(group)
        while recovery is None and (job := await self._create_job(group)) is not None:
            await self._run_job(job)

    async def _create_job(self, group: RequestGroup) -> Job | None:
        async with self._creating:
            return await self._create_due_job(group)

    async def _promote(self, group: RequestGroup) -> None:
        now, backlog = await self._store.now(), await self._store.backlog(group)
        promotion = promote(backlog, self._config.batch, now)
        if promotion is not None:
            requests = await self._store.with_deadline_until(group, promotion.until)
            await self._withdrawal.promote(requests, group, promotion.reason)

    async def _create_due_job(self, group: RequestGroup) -> Job | None:
        backlog = await self._store.backlog(group)
        if not backlog.requests:
            return None
        terms = pricing_of(self._config, group)
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
        intent = await self._store.server.new_intent()
        return await self._store.create_job(group, decision, policy, terms, intent)
