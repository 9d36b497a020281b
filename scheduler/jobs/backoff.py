"""How long to wait before the next look or the next try."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from scheduler.model.job import RequestGroup
from scheduler.store import keys

GROWTH = 1.5
#: Share by which a wait is longer or shorter by chance, so that many do not come at once.
JITTER = 0.1


class Backoff:
    """Waits that grow from `first` to `most` seconds; `chance` gives numbers in [0, 1)."""

    def __init__(
        self, first: float, most: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = max(first, most)
        self._chance = chance

    def after(self, waits: int) -> float:
        """Seconds to wait after so many waits."""
        grown = min(self._most, self._first * GROWTH ** min(waits, 100))
        return grown * (1 + JITTER * (2 * self._chance() - 1))


class Pause(BaseModel):
    """Why a group or a provider gets no new batch before `until`."""

    model_config = ConfigDict(frozen=True)

    until: float = 0.0
    #: Refusals in a row.
    count: int = 0
    #: The most requests of the next batch; 0 for no limit of its own.
    limit: int = 0


class Pauses:
    """The pauses of groups and providers, by their names."""

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # its types are those of both its faces at once

    async def get(self, name: str) -> Pause:
        """What is known of a pause."""
        text = await self._redis.hget(keys.PAUSES, name)
        return Pause.model_validate_json(text) if text else Pause()

    async def set(self, name: str, pause: Pause) -> None:
        """Pause a group or a provider; `Pause()` ends it."""
        if pause == Pause():
            await self._redis.hdel(keys.PAUSES, name)
        else:
            await self._redis.hset(keys.PAUSES, name, pause.model_dump_json())


def rate_pause(group: RequestGroup) -> str:
    """The name of the pause of a group of which the provider got too many batches too fast."""
    return f"rate of {group}"


def token_pause(group: RequestGroup) -> str:
    """The name of the pause of a group of which the provider has too many tokens enqueued."""
    return f"tokens of {group}"


def search_pause(group: RequestGroup) -> str:
    """The name of the pause, which only limits, of a group in which a bad request is looked for."""
    return f"search in {group}"


def pauses(group: RequestGroup) -> tuple[str, ...]:
    """The names of all pauses that can keep back or limit a group's next batch.

    It is cut when `until` of all has passed, with at most the smallest `limit` that is not 0.
    """
    return (group.provider, rate_pause(group), token_pause(group), search_pause(group))
