"""The batch lane put together: what a scheduler's worker holds."""

from __future__ import annotations

from collections.abc import Mapping

from config.fleet import FleetConfig
from scheduler.completion.celery_replay import CeleryReplay
from scheduler.completion.completer import Completer
from scheduler.completion.withdrawal import Withdrawal
from scheduler.jobs.aggregator import Aggregator
from scheduler.jobs.context import BatchContext, Observers
from scheduler.jobs.finisher import JobFinisher
from scheduler.jobs.result_reader import ResultReader
from scheduler.jobs.runner import JobRunner
from scheduler.jobs.submitter import Submitter
from scheduler.providers.base import BatchProvider


class BatchPipeline:
    """Aggregates and polls, on one event loop. `providers` go by their names in the config."""

    def __init__(
        self,
        desk: BatchContext,
        config: FleetConfig,
        providers: Mapping[str, BatchProvider],
        tracer: CeleryReplay,
        observers: Observers,
    ) -> None:
        self._desk = desk
        self._providers = providers
        self.sweep_bodies = desk.blobs.sweep
        self._deliverer = Completer(desk.store, desk.blobs, tracer, observers.on_receipt)
        ending = JobFinisher(desk, self._deliverer, observers.on_batch_closed)
        poller = JobRunner(
            desk, providers, Submitter(desk, ending), ResultReader(desk, ending), ending
        )
        self.poll = poller.poll
        self.withdrawal = Withdrawal(desk.store, desk.blobs, tracer)
        aggregator = Aggregator(desk.store, config, self._deliverer, self.withdrawal, poller.run)
        self.aggregate = aggregator.aggregate

    async def close(self) -> None:
        """Finish the completions under way and give the connections back."""
        await self._deliverer.close()
        for provider in self._providers.values():
            await provider.close()
        await self._desk.store.close_connections()
