"""One batch, from its input file to its output and error files, by `BatchRun`.

An execution keeps nothing that another process needs: after its death, another execution of the
same batch reads the results that are there, and awaits the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
from starlette.datastructures import UploadFile

from api.batches.validation import LineCheck
from api.batches.work_folder import work_folder
from api.errors import message_of
from api.keys import Caller
from api.media_urls import check_hosts
from api.store.batches import Batch, BatchStore, Claim, Counts, End
from api.store.files import FileStore, Upload, UploadLost
from config.api import Webhook
from primarch_fleet import Fleet
from primarch_fleet.batch_file.input_file import RunOptions, read_lines
from primarch_fleet.batch_file.output_file import ErrorFile, OutputFile
from primarch_fleet.batch_file.run import BatchRun, Totals, default_window
from primarch_fleet.batch_file.stored_results import StoredResults
from primarch_fleet.errors import BatchCancelled, BatchExpired, FleetError

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Seconds for which a process has a batch without a sign of life, and between two of these.
LEASE_SECONDS, RENEW_SECONDS = 30.0, 2.0


class BatchLost(Exception):
    """Another process has the batch, or this one stops."""


class _LinesStopped(Exception):
    """The lines are not to be continued by this execution."""


@dataclass(frozen=True)
class Tools:
    """What executions share in a process."""

    batches: BatchStore
    files: FileStore
    fleet: Fleet
    #: A client with replies in bytes, for threads.
    redis: redis.Redis
    executor: Executor
    #: The webhooks of the configuration, as it is now.
    webhooks: Callable[[], Sequence[Webhook]]


class Execution:
    """Runs a claimed batch.

    Args:
        tools: What executions share.
        claim: Of the batch.
        batch: As it is at the beginning.
    """

    def __init__(self, tools: Tools, claim: Claim, batch: Batch) -> None:
        self._tools, self._claim, self._batch = tools, claim, batch
        self._stop = threading.Event()
        #: Why lines are cancelled; None if the batch is left to another process.
        self._reason: FleetError | None = None
        self._is_left = False
        self._total = 0
        self._run: BatchRun | None = None

    def leave(self) -> None:
        """Stop, and leave the batch to another process."""
        self._is_left = True
        self._stop.set()

    async def run(self) -> End:
        """Run the batch to its end.

        Raises:
            BatchLost: Another process has the batch, or will have it.
            FleetError: The fleet does not take the lines now.
        """
        lease = asyncio.create_task(self._keep_lease())
        try:
            with work_folder() as folder:
                end = await self._to_end(folder)
                await self._write_end(end)
                return end
        finally:
            self._stop.set()
            lease.cancel()

    async def _to_end(self, folder: Path) -> End:
        source = folder / "input.jsonl"
        try:
            await self._fetch_input(source)
        except UploadLost:
            message = f"No file found with id {self._batch.spec.input_file_id!r}."
            return _failed([_error("file_not_found", message, "input_file_id")])
        check = await self._in_thread(self._check_lines, source, asyncio.get_running_loop())
        if check.errors:
            is_cancelled = isinstance(self._reason, BatchCancelled)
            return End("cancelled") if is_cancelled else _failed(check.errors)
        self._total = check.lines
        await self._renew("in_progress")
        await self._in_thread(self._run_lines, source, folder)
        if self._reason is None:
            await self._renew("finalizing")
        return End(
            self._last_status(),
            self._counts(),
            usage=_usage(self._run.totals) if self._run else None,
            files=await self._store_files(folder),
        )

    async def _fetch_input(self, path: Path) -> None:
        spec = self._batch.spec
        file = await self._tools.files.get(spec.tenant, spec.input_file_id)
        if file is None:
            raise UploadLost
        with path.open("wb") as target:
            async for part in self._tools.files.content(file):
                await self._in_thread(target.write, part)

    def _check_lines(self, source: Path, loop: asyncio.AbstractEventLoop) -> LineCheck:
        def check(hosts: set[str]) -> None:
            if self._is_left:
                raise BatchLost
            if hosts:
                asyncio.run_coroutine_threadsafe(check_hosts(hosts), loop).result()

        spec = self._batch.spec
        may_use = Caller("batch", spec.tenant, models=spec.models).may_use
        lines = LineCheck(self._tools.fleet.catalogue(), may_use, check)
        lines.run(read_lines(source, self._options()))
        return lines

    def _run_lines(self, source: Path, folder: Path) -> None:
        tools, options = self._tools, self._options()
        results = StoredResults(tools.fleet.app, tools.redis)
        lines, window = read_lines(source, options), default_window(options.lane)
        with (
            OutputFile(_output(folder)) as output,
            ErrorFile(_errors(folder), message_of) as errors,
        ):
            run = BatchRun(tools.fleet, results, lines, output, errors, window, sleep=self._sleep)
            self._run = run
            with suppress(_LinesStopped):
                self._check_stop()
                run.run(self._check_stop)
            if self._is_left:
                raise BatchLost
            if self._reason is not None:
                run.end(self._reason)

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _LinesStopped

    def _options(self) -> RunOptions:
        spec = self._batch.spec
        fields: dict[str, Any] = dict(spec.routing)
        lane = fields.pop("lane")
        return RunOptions(lane, spec.tenant, self._batch.id, "", spec.endpoint, fields)

    def _last_status(self) -> Any:
        if self._reason is None:
            return "completed"
        return "cancelled" if isinstance(self._reason, BatchCancelled) else "expired"

    def _counts(self) -> Counts:
        if self._run is None:
            return Counts(self._total)
        totals = self._run.totals
        return Counts(self._total, totals.answered + totals.kept, self._run.errors.count)

    async def _store_files(self, folder: Path) -> dict[str, Upload]:
        """Store the files that have lines: all, or none."""
        paths = {"output": _output(folder), "error": _errors(folder)}
        uploads: dict[str, Upload] = {}
        try:
            for name, path in paths.items():
                if path.exists() and path.stat().st_size:
                    uploads[f"{name}_file_id"] = await self._store_file(name, path)
        except BaseException:
            await self._discard(uploads.values())
            raise
        return uploads

    async def _store_file(self, name: str, path: Path) -> Upload:
        filename = f"{self._batch.id}_{name}.jsonl"
        with path.open("rb") as file:
            return await self._tools.files.upload(
                self._batch.spec.tenant, filename, "batch_output", UploadFile(file)
            )

    async def _discard(self, uploads: Iterable[Upload]) -> None:
        for upload in uploads:
            with suppress(redis.RedisError):  # it expires
                await self._tools.files.discard(upload)

    async def _write_end(self, end: End) -> None:
        spec, webhooks = self._batch.spec, self._tools.webhooks()
        if not await self._tools.batches.end(self._claim, spec, end, webhooks):
            await self._discard(end.files.values())
            raise BatchLost

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._tools.executor, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.leave()
            with suppress(Exception):
                await future  # the thread uses the folder
            raise

    async def _renew(self, status: Any = "") -> None:
        reply = await self._tools.batches.renew(self._claim, LEASE_SECONDS, status, self._counts())
        if reply is None:
            raise BatchLost
        self._heed(*reply)

    def _heed(self, status: str, now: int) -> None:
        """Stop the lines of a batch that is cancelled or has expired."""
        if self._reason is None:
            if status == "cancelling":
                self._reason = BatchCancelled()
            elif now >= self._batch.expires_at:
                self._reason = BatchExpired()
        if self._reason is not None:
            self._stop.set()

    async def _keep_lease(self) -> None:
        """Show that this process has the batch, and write the progress."""
        renewed_at = time.monotonic()
        while True:
            try:
                await self._renew()
                renewed_at = time.monotonic()
            except BatchLost:
                return self.leave()
            except redis.RedisError as error:
                logger.warning(
                    "%s: no sign of life: %s",
                    self._batch.id,
                    error,
                    extra={"action": "batch_renewal_failed"},
                )
                if time.monotonic() - renewed_at > LEASE_SECONDS:
                    return self.leave()
            await asyncio.sleep(RENEW_SECONDS)


def _failed(errors: list[dict[str, Any]]) -> End:
    return End("failed", errors=errors)


def _error(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": None, "param": param}


def _usage(totals: Totals) -> dict[str, Any]:
    return {
        "input_tokens": totals.input_tokens,
        "input_tokens_details": {"cached_tokens": totals.cached_tokens},
        "output_tokens": totals.output_tokens,
        "output_tokens_details": {"reasoning_tokens": totals.reasoning_tokens},
        "total_tokens": totals.input_tokens + totals.output_tokens,
    }


def _output(folder: Path) -> Path:
    return folder / "output.jsonl"


def _errors(folder: Path) -> Path:
    return folder / "error.jsonl"
