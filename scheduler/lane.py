"""The batch lane put together: what a scheduler's worker holds."""

from __future__ import annotations

from collections.abc import Mapping

from config.fleet import FleetConfig
from scheduler.aggregate import Aggregator
from scheduler.deliver import Deliverer
from scheduler.desk import Desk, Observers
from scheduler.drain import Drain
from scheduler.ending import Ending
from scheduler.exit import Exit
from scheduler.poll import Poller
from scheduler.providers.base import BatchProvider
from scheduler.submit import Submitter
from scheduler.tracer import Tracer


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
