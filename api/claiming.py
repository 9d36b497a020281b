"""Claims what is due and works on it: a few things at the same time, and fewer of each tenant."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import redis

logger = logging.getLogger(__name__)

#: Seconds between two searches for something due.
CLAIM_SECONDS = 1.0


class Claimed(Protocol):
    """What a claim returns."""

    @property
    def tenant(self) -> str:
        """The tenant of the claimed thing."""


T = TypeVar("T", bound=Claimed)


class Most(NamedTuple):
    """How many things a process works on at the same time."""

    #: Of all tenants, and of one.
    of_all: int
    of_tenant: int


class ClaimLoop(Generic[T]):
    """Claims and works, each thing in a task of its own.

    Args:
        name: What is claimed, for the log: `batch`.
        claim: Claims something due of a tenant that is not among these; None if nothing is due.
        work: Works on what was claimed; raises nothing.
        most: How many at the same time.
    """

    def __init__(
        self,
        name: str,
        claim: Callable[[list[str]], Awaitable[T | None]],
        work: Callable[[T], Coroutine[Any, Any, None]],
        most: Most,
    ) -> None:
        self._name, self._claim, self._work, self._most = name, claim, work, most
        self._tenants: dict[asyncio.Task[None], str] = {}
        self._loop = asyncio.create_task(self._claim_all())

    async def stop(self) -> set[asyncio.Task[None]]:
        """Claim nothing more; return the tasks of what is under way."""
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        return set(self._tenants)

    async def _claim_all(self) -> None:
        while True:
            claimed = None
            try:
                if len(self._tenants) < self._most.of_all:
                    claimed = await self._claim(self._busy())
            except redis.RedisError as error:
                action = {"action": f"{self._name}_claim_failed"}
                logger.warning("no %s claimed: %s", self._name, error, extra=action)
            if claimed is None:
                await asyncio.sleep(CLAIM_SECONDS)
                continue
            task = asyncio.create_task(self._work(claimed))
            self._tenants[task] = claimed.tenant
            task.add_done_callback(self._tenants.pop)

    def _busy(self) -> list[str]:
        counts = Counter(self._tenants.values())
        return [tenant for tenant, count in counts.items() if count >= self._most.of_tenant]
