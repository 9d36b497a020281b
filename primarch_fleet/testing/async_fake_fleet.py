"""An `AsyncFleet` for unit tests: it answers by script, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from primarch_fleet.async_client import AsyncFleet, SubmitQueue
from primarch_fleet.client import Fleet
from primarch_fleet.streaming import StreamCursor
from primarch_fleet.testing.fake_broker import FakeBroker
from primarch_fleet.testing.fake_fleet import Script


class _Fleet(Fleet):
    """A client of a broker in memory."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker


class AsyncFakeFleet(Script, AsyncFleet):
    """`FakeFleet` for asyncio: an `AsyncFleet` with the same script.

    Args:
        answer: As FakeFleet takes it; a function is called on another thread.
        catalogue: As FakeFleet takes it.
        receipt: The same.
        clock: The same.
    """

    def _use(self, broker: FakeBroker) -> None:
        self._fleet = _Fleet(broker)
        self._submits = SubmitQueue(broker)
        self._is_closed = False

    async def _disconnect(self) -> None:
        """Nothing is connected."""

    @property
    def _result_backend(self) -> Any:
        return self.broker.result_backend

    async def _outcome(self, task_id: str) -> Any:
        async for _, outcome in self.broker.outcomes([task_id]):
            return outcome

    def _outcomes(self, task_ids: Sequence[str]) -> AsyncGenerator[tuple[str, Any], None]:
        return self.broker.outcomes(task_ids)

    async def _read(self, cursor: StreamCursor) -> tuple[Any, Any]:
        self._check_open()
        return await asyncio.to_thread(self.broker.read_stream, cursor)
