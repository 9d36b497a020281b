"""The batch lane put together, as a batch worker holds it."""

from __future__ import annotations

from collections.abc import Mapping

from config.fleet import FleetConfig
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.completion.completer import Completer
from scheduler.jobs.aggregator import Aggregator
from scheduler.jobs.context import BatchContext, Observers
from scheduler.jobs.finisher import JobFinisher
from scheduler.jobs.orphans import OrphanSearch
from scheduler.jobs.result_reader import ResultReader
from scheduler.jobs.runner import JobRunner
from scheduler.jobs.submitter import Submitter
from scheduler.promotion.withdrawal import Withdrawal
from scheduler.providers.base import BatchProvider


class BatchPipeline:
    """Builds the stages of the batch lane; all run on one event loop.

    Args:
        providers: By their names in the configuration.
    """

    def __init__(
        self,
        context: BatchContext,
        config: FleetConfig,
        providers: Mapping[str, BatchProvider],
        tracer: CeleryTracer,
        observers: Observers,
    ) -> None:
        self._context = context
        self._providers = providers
        self._completer = Completer(context.store, context.blobs, tracer, observers.on_receipt)
        self.withdrawal = Withdrawal(context.store, context.blobs, tracer)
        finisher = JobFinisher(context, self._completer, observers.on_batch_closed)
        self._orphans = OrphanSearch(context, config, providers)
        submitter = Submitter(context, finisher, self._orphans)
        self._runner = JobRunner(
            context, providers, submitter, ResultReader(context, finisher), finisher
        )
        self._aggregator = Aggregator(
            context.store, config, self._completer, self.withdrawal, self._runner.run
        )

    async def start(self) -> None:
        """Log what may be lost with Redis, see `OrphanSearch.start`."""
        await self._orphans.start()

    async def aggregate(self) -> None:
        """Search forgotten batches, then create and submit those that are due.

        See `OrphanSearch.recover` and `Aggregator.aggregate`.
        """
        await self._aggregator.aggregate(await self._orphans.recover())

    async def poll(self) -> None:
        """Run the jobs that are due, see `JobRunner.poll`."""
        await self._runner.poll()

    async def sweep_bodies(self) -> None:
        """Remove stored bodies that are not needed any more, see `BlobStore.sweep`."""
        await self._context.blobs.sweep()

    async def close(self) -> None:
        """Finish the completions in progress and close all connections."""
        await self._completer.close()
        for provider in self._providers.values():
            await provider.close()
        await self._context.store.close_connections()
