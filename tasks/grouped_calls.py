"""Groups calls: what comes while a round trip is under way goes together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Items of one group, so that a group of large items stays small enough for one pipeline.
MAX_ITEMS = 64


class GroupedCalls(Generic[T]):
    """Sends items in groups, one group at a time and in order. Use it on one loop.

    No item waits for others to come: it is in the next group, which is sent as soon as the group
    before it is done. So a group is as large as the load makes it, up to MAX_ITEMS.

    Args:
        send: Sends a group. Its error is the error of each item in the group.
    """

    def __init__(self, send: Callable[[list[T]], Awaitable[object]]) -> None:
        self._send = send
        self._group: list[T] = []  # still takes items
        self._task: asyncio.Task[None] | None = None  # sends it
        self._sending = asyncio.Lock()

    def submit(self, item: T) -> asyncio.Future[None]:
        """Put an item into the next group; return the future of that group. Do not cancel it."""
        if self._task is None or len(self._group) == MAX_ITEMS:
            self._group = []
            self._task = asyncio.create_task(self._send_group(self._group))
        self._group.append(item)
        return self._task

    async def add(self, item: T) -> None:
        """Send an item; it is sent even if the caller is cancelled meanwhile."""
        await asyncio.shield(self.submit(item))

    async def close(self) -> None:
        """Wait until all items are sent."""
        while self._task is not None or self._sending.locked():
            async with self._sending:
                pass
            await asyncio.sleep(0)

    async def _send_group(self, group: list[T]) -> None:
        async with self._sending:
            if group is self._group:
                self._task = None
            await self._send(group)
