"""Pauses: groups, providers or the whole lane for which no batch is created for a while."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from scheduler.model.job import RequestGroup
from scheduler.store import keys

#: The pause of the whole lane, which `drain` sets and `resume` ends.
WHOLE_LANE = "*"


class Pause(BaseModel):
    """Why a group or a provider gets no new batch before `until`. `Pause()` is no pause."""

    model_config = ConfigDict(frozen=True)

    #: Unix seconds.
    until: float = 0.0
    #: Refusals in a row.
    count: int = 0
    #: Most requests of the next batch; 0 for no limit besides the policy's.
    limit: int = 0
    #: Why an account is paused; "" for other pauses.
    reason: str = ""


class Pauses:
    """The stored pauses, by name: a provider, WHOLE_LANE, or a name that a function below gives."""

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one

    async def get(self, name: str) -> Pause:
        """Return a pause, `Pause()` if none is stored."""
        text = await self._redis.hget(keys.PAUSES, name)
        return Pause.model_validate_json(text) if text else Pause()

    async def accounts(self) -> dict[str, Pause]:
        """Return the pauses of accounts, also those that have passed without an answer since."""
        stored = await self._redis.hgetall(keys.PAUSES)
        pauses = {name: Pause.model_validate_json(text) for name, text in stored.items()}
        return {name: pause for name, pause in pauses.items() if pause.reason}

    async def set(self, name: str, pause: Pause) -> None:
        """Store a pause; `Pause()` ends it."""
        if pause == Pause():
            await self._redis.hdel(keys.PAUSES, name)
        else:
            await self._redis.hset(keys.PAUSES, name, pause.model_dump_json())


def rate_pause(group: RequestGroup) -> str:
    """Name the pause of a group whose batches the provider rate-limits."""
    return f"rate of {group}"


def token_pause(group: RequestGroup) -> str:
    """Name the pause of a group that has too many tokens enqueued at the provider."""
    return f"tokens of {group}"


def bisection_pause(group: RequestGroup) -> str:
    """Name the pause that limits a group's batches while a bad request is being searched for."""
    return f"search in {group}"


def pause_names(group: RequestGroup) -> tuple[str, ...]:
    """Name every pause, besides WHOLE_LANE, that can stop or limit a group's next batch.

    The batch is created after `until` of all of them, with at most the smallest `limit` that is
    not 0.
    """
    return (group.provider, rate_pause(group), token_pause(group), bisection_pause(group))
