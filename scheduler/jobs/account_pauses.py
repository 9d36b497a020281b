"""Pauses of accounts: no batch is created while a provider refuses the account itself.

An account pauses for money, quota, key, permission or a lost input file. Its requests wait with
their attempts uncounted; other accounts continue. Each pause in a row is longer, and the account is
tried again after each. The first raises the alarm; a batch that ends with answers, or the command
`resume`, ends the pause.
"""

from __future__ import annotations

import asyncio
import logging

from scheduler.jobs.context import BatchContext
from scheduler.model.job import Job
from scheduler.store.batch_pauses import Pause
from tasks.provider_errors import Fault
from workers.observability import metrics

logger = logging.getLogger(__name__)


class AccountPauses:
    """Pauses and resumes the accounts of jobs that the caller holds."""

    def __init__(self, context: BatchContext) -> None:
        self._pauses = context.store.pauses
        self._now = context.store.now
        self._backoff = context.backoff
        #: Held by `pause`: of two jobs that fail at the same moment, only the first pauses.
        self._lock = asyncio.Lock()

    async def pause(self, job: Job, fault: Fault, retry_after: float | None = None) -> float:
        """Pause a job's account, unless it is paused; return the seconds until the pause ends.

        Args:
            retry_after: Seconds to wait, if the provider says so; by default the backoff.
        """
        account = job.group.provider
        async with self._lock:
            now, pause = await self._now(), await self._pauses.get(account)
            if pause.until > now:
                return pause.until - now
            seconds = self._backoff.after(pause.count) if retry_after is None else retry_after
            count = pause.count + 1
            paused = Pause(until=now + seconds, count=count, reason=fault.reason)
            await self._pauses.set(account, paused)
        if count == 1:
            metrics.alarm_account(account, fault)
        else:
            logger.warning(
                "%s: still refused (%s), paused for %.0f s",
                account,
                fault.reason,
                seconds,
                extra={"action": "account_still_paused"},
            )
        return seconds

    async def resume(self, job: Job) -> None:
        """End the pause of a job's account after a batch with answers."""
        account = job.group.provider
        if (await self._pauses.get(account)).count:
            await self._pauses.set(account, Pause())
            logger.info("%s: resumed", account, extra={"action": "account_resumed"})
