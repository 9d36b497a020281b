"""The batch lane put together: what a scheduler's worker holds."""

from __future__ import annotations

from collections.abc import Mapping

from config.fleet import FleetConfig
from scheduler.completion.celery_replay import Tracer
from scheduler.completion.completer import Deliverer
from scheduler.completion.withdrawal import Exit
from scheduler.jobs.aggregator import Aggregator
from scheduler.jobs.context import Desk, Observers
from scheduler.jobs.finisher import Ending
from scheduler.jobs.result_reader import Drain
from scheduler.jobs.runner import Poller
from scheduler.jobs.submitter import Submitter
from scheduler.providers.base import BatchProvider


class Lane:
    """Aggregates and polls, on one event loop. `providers` go by their names in the config."""

    def __init__(
        self,
        desk: Desk,
        config: FleetConfig,
        providers: Mapping[str, BatchProvider],
        tracer: Tracer,
        observers: Observers,
    ) -> None:
        self._desk = desk
        self._providers = providers
        self.sweep_bodies = desk.bodies.sweep
        self._deliverer = Deliverer(desk.store, desk.bodies, tracer, observers.receipt)
        ending = Ending(desk, self._deliverer, observers.batch)
        poller = Poller(desk, providers, Submitter(desk, ending), Drain(desk, ending), ending)
        self.poll = poller.poll
        self.exit = Exit(desk.store, desk.bodies, tracer, config.catalogue())
        aggregator = Aggregator(desk.store, config, self._deliverer, self.exit, poller.work)
        self.aggregate = aggregator.aggregate

    async def close(self) -> None:
        """Finish the completions under way and give the connections back."""
        await self._deliverer.close()
        for provider in self._providers.values():
            await provider.close()
        await self._desk.store.close_connections()
