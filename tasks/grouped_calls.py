"""Groups calls: what comes while a round trip is under way goes together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class GroupedCalls(Generic[T]):
    """Sends items in groups, one group at a time and in order. Use it on one loop.

    An item waits for no other one: it is in the next group, which is sent as soon as the group
    before it is done. So a group is as large as the load makes it.

    Args:
        send: Sends a group. Its error is the error of each item in the group.
    """

    def __init__(self, send: Callable[[list[T]], Awaitable[object]]) -> None:
        self._send = send
        self._items: list[T] = []
        self._next: asyncio.Task[None] | None = None  # the group that still takes items
        self._sending = asyncio.Lock()

    async def add(self, item: T) -> None:
        """Send an item in the next group; it is sent even if the caller is cancelled meanwhile."""
        self._items.append(item)
        if self._next is None:
            self._next = asyncio.create_task(self._send_next())
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Wait until all items are sent."""
        while self._next is not None or self._sending.locked():
            async with self._sending:
                pass
            await asyncio.sleep(0)

    async def _send_next(self) -> None:
        async with self._sending:
            items, self._items, self._next = self._items, [], None
            await self._send(items)
