"""Claims due batches and runs them, in each process of `fleet serve`."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Any

import redis
from prometheus_client import Counter, Gauge

from api.batches.execution import LEASE_SECONDS, BatchLost, Execution, Tools
from api.batches.work_folder import remove_left_over
from api.claiming import ClaimLoop, Most
from api.errors import message_of
from api.services import Services
from api.store.batches import BatchStore, Claim, End
from api.store.files import FileStore
from primarch_fleet import Fleet
from primarch_fleet.errors import FleetError
from primarch_fleet.redis_support import once

logger = logging.getLogger(__name__)

#: Batches that a process runs at the same time, and those of one tenant. A run mostly waits.
MOST = Most(32, 8)
#: Seconds until any process tries a batch again that could not be continued.
RETRY_SECONDS = 30.0
#: Seconds after its window for which a batch that cannot be continued is tried.
_LATE_SECONDS = 3_600
#: Seconds that runs have to stop when the process ends.
_STOP_SECONDS = 10.0
#: After which a broker that does not answer is an error.
_TIMEOUT_SECONDS = 10.0

ended_total = Counter(
    "primarch_api_batches_total", "Batches of /v1/batches that ended, by last status", ["status"]
)
running_batches = Gauge(
    "primarch_api_running_batches", "Batches of /v1/batches that this process runs"
)
retries_total = Counter(
    "primarch_api_batch_retries_total",
    "Times that a batch of /v1/batches could not be continued and was left for later",
)


class BatchRunner(AbstractAsyncContextManager["BatchRunner"]):
    """Runs batches while it is open; what is unfinished at its end is left to other processes.

    Args:
        services: Of the process.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._resources = ExitStack()
        self._executions: set[Execution] = set()
        self._loop: ClaimLoop[Claim] | None = None
        self._tools: Any = None

    async def __aenter__(self) -> BatchRunner:
        await asyncio.to_thread(remove_left_over)
        url = self._services.url
        files = FileStore(self._services.redis, self._services.result_seconds)
        self._tools = Tools(
            BatchStore(self._services.redis, files),
            files,
            self._resources.enter_context(Fleet(url, timeout=_TIMEOUT_SECONDS)),
            self._resources.enter_context(once(url, _TIMEOUT_SECONDS, text=False)),
            ThreadPoolExecutor(MOST.of_all, "batch"),
            lambda: self._services.config.webhooks,
        )
        self._loop = ClaimLoop("batch", self._claim, self._execute, MOST)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = await self._loop.stop() if self._loop else set()
        for execution in self._executions:
            execution.leave()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        self._tools.executor.shutdown(wait=False, cancel_futures=True)
        self._resources.close()

    async def _claim(self, busy: list[str]) -> Claim | None:
        claim: Claim | None = await self._tools.batches.claim(LEASE_SECONDS, busy)
        return claim

    async def _execute(self, claim: Claim) -> None:
        running_batches.inc()
        try:
            await self._run(claim)
        except redis.RedisError as error:  # another process takes over after the lease
            logger.warning(
                "%s: left for later: %s", claim.batch_id, error, extra={"action": "batch_left"}
            )
        finally:
            running_batches.dec()

    async def _run(self, claim: Claim) -> None:
        batch = await self._tools.batches.get(claim.tenant, claim.batch_id)
        if batch is None:
            await self._tools.batches.forget(claim)
            return
        execution = Execution(self._tools, claim, batch)
        self._executions.add(execution)
        try:
            end = await execution.run()
        except BatchLost:
            await self._tools.batches.renew(claim, 0)
        except FleetError as error:
            await self._retry(claim, batch, message_of(error))
        except redis.RedisError:
            raise
        except Exception:
            logger.exception("%s: failed", claim.batch_id, extra={"action": "batch_run_failed"})
            await self._retry(claim, batch, "the server has failed; its log says why")
        else:
            ended_total.labels(end.status).inc()
            logger.info(
                "%s: %s", claim.batch_id, end.status, extra={"action": f"batch_{end.status}"}
            )
        finally:
            self._executions.discard(execution)

    async def _retry(self, claim: Claim, batch: Any, why: str) -> None:
        """Leave a batch for later; long after its window, end it."""
        retries_total.inc()
        logger.warning(
            "%s: left for later: %s", claim.batch_id, why, extra={"action": "batch_left"}
        )
        reply = await self._tools.batches.renew(claim, RETRY_SECONDS)
        if reply is not None and reply[1] > batch.expires_at + _LATE_SECONDS:
            error = {"code": "internal_error", "message": why, "line": None, "param": None}
            end = End("failed", errors=[error])
            await self._tools.batches.end(claim, batch.spec, end, self._tools.webhooks())
            ended_total.labels("failed").inc()
