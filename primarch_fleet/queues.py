"""The queues in Redis: their lists, and how many messages wait in them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis

from primarch_fleet import protocol
from primarch_fleet.contract import PRIORITIES
from primarch_fleet.redis_support import LuaScript, ScriptPipeline, decoded

#: Separates the name of a queue from a priority in the names of its lists:
#: https://docs.celeryq.dev/en/stable/userguide/routing.html#redis-message-priorities
SEPARATOR = "\x06\x16"
#: The priorities for which the Redis transport has lists, most urgent first.
PRIORITY_STEPS = (0, 3, 6, 9)
#: Redis key of a set: the queues from which workers take no messages until they are resumed.
PAUSED_QUEUES_KEY = "fleet:paused_queues"
#: Tenants of one list, in the order of their turns, whose messages are searched for the oldest one.
#: With more tenants, an older message may be missed.
MAX_SCANNED_TENANTS = 100

_LUA = Path(__file__).with_name("lua") / "queue"
#: The first part of each script that reads or changes a queue.
TURNS = _LUA / "turns.lua"
#: The part that keeps the lengths of the lists true, of each script that changes a queue.
PLACEHOLDERS = _LUA / "placeholders.lua"
#: The part by which scripts read a message's headers.
HEADERS = _LUA / "headers.lua"
_PURGE = LuaScript.load(TURNS, PLACEHOLDERS, _LUA / "purge.lua")
_FIND_TASK = LuaScript.load(TURNS, _LUA / "find_task.lua")
#: Messages of each list that one script searches: Redis does nothing else meanwhile.
_SEARCHED_MESSAGES = 200
#: A reply of lua/queue/find_task.lua.
_HAS_MORE = -1
_READ_PART = LuaScript.load(TURNS, _LUA / "read_part.lua")
#: Bytes of messages after which one script ends its reply.
_PART_BYTES = 1_000_000
_COUNT_WAITING = LuaScript.load(TURNS, HEADERS, _LUA / "count_waiting.lua")


class QueueDepth(NamedTuple):
    """The messages that wait in one queue."""

    depth: int
    #: Unix seconds of the oldest submit; None if no message waits, or none has a submit time.
    oldest_at: float | None
    #: The number of messages in each of the `priority_lists`.
    counts: tuple[int, ...] = ()

    @classmethod
    def from_reply(cls, reply: Sequence[Any]) -> Self:
        """Decode the reply to `count_waiting`: for each list a count and a submit time."""
        counts = tuple(reply[::2])
        submit_times = [float(text) for text in reply[1::2] if text]
        return cls(sum(counts), min(submit_times, default=None), counts)

    def lower_priority(self) -> dict[str, int]:
        """Return for each named priority the number of messages with a lower priority."""
        return {
            name: sum(self.counts[PRIORITY_STEPS.index(step) + 1 :])
            for name, step in PRIORITIES.items()
        }

    def oldest_wait_seconds(self, now: tuple[int, int]) -> float | None:
        """Return the seconds that the oldest message has waited; None without `oldest_at`.

        Args:
            now: The reply to Redis's TIME: seconds and microseconds.
        """
        seconds, microseconds = now
        if self.oldest_at is None:
            return None
        return max(0.0, seconds + microseconds / 1e6 - self.oldest_at)


def priority_lists(queue: str) -> list[str]:
    """Return the lists of a queue that producers push to, one for each priority."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]


def turns_list(name: str) -> str:
    """Return the list, as lua/queue/turns.lua names it, of the tenants with messages in a list."""
    return f"{name}{SEPARATOR}turns"


def count_waiting(client: Any, queue: str, *, read_messages: bool = True) -> Any:
    """Count the messages of a queue. Decode the reply with `QueueDepth.from_reply`.

    Args:
        client: A client, or a ScriptPipeline, whose `execute` then returns the reply.
        read_messages: False for a user who may not read messages; `oldest_at` is then None.
    """
    header = f'"{protocol.SUBMITTED_AT}"' if read_messages else ""
    arguments = [header, MAX_SCANNED_TENANTS]
    return _COUNT_WAITING.run(client, priority_lists(queue), arguments)


def find_message(
    client: redis.Redis, queues: Iterable[str], task_id: str, seconds: float = math.inf
) -> str | bytes | None:
    """Return the message of a task that waits in a queue, or None. Reads all messages, in parts.

    A message that workers sort by tenant meanwhile is found.

    Args:
        seconds: For which it searches: a million messages take some.

    Raises:
        TimeoutError: There are more messages than could be searched.
    """
    ends_at = time.monotonic() + seconds
    lists = [name for queue in queues for name in priority_lists(queue)]
    if (found := _find_in(client, lists, task_id, ends_at)) is not None:
        return found
    # Afterwards: messages move in this direction.
    return _find_in(client, _tenants_lists(client, lists), task_id, ends_at)


def waiting_messages(client: redis.Redis, queue: str) -> Iterator[bytes]:
    """Yield the messages that wait in a queue, in no order, with a megabyte or so in a round trip.

    A message that waits all the time is yielded at least once, also if workers sort it by tenant
    meanwhile.

    Args:
        client: Must not decode responses: a message may be any text.
    """
    lists = priority_lists(queue)
    yield from _messages(client, lists)
    # Afterwards: messages move in this direction.
    yield from _messages(client, _tenants_lists(client, lists))


def _messages(client: redis.Redis, lists: list[str]) -> Iterator[bytes]:
    for name in lists:
        start = 0
        while part := _READ_PART.run(client, [name], [start, _PART_BYTES]):
            yield from part
            start += len(part)  # messages are pushed before this place, and taken after it


def _tenants_lists(client: redis.Redis, lists: list[str]) -> list[str]:
    """The lists of messages that workers have sorted by tenant."""
    pipe = client.pipeline(transaction=False)
    for name in lists:
        pipe.lrange(turns_list(name), 0, -1)
    return [
        f"{turns_list(name)}{SEPARATOR}{decoded(tenant)}"
        for name, tenants in zip(lists, pipe.execute(), strict=True)
        for tenant in tenants
    ]


def _find_in(
    client: redis.Redis, lists: list[str], task_id: str, ends_at: float
) -> str | bytes | None:
    for start in count(0, _SEARCHED_MESSAGES):
        if not lists:
            break
        if time.monotonic() >= ends_at:
            raise TimeoutError(f"{start} messages of each list were searched")
        pipe = ScriptPipeline(client)
        for name in lists:
            _FIND_TASK.run(pipe, [name], [json.dumps(task_id), start, _SEARCHED_MESSAGES])
        replies = pipe.execute()
        for reply in replies:
            if isinstance(reply, str | bytes):
                return reply
        lists = [name for name, reply in zip(lists, replies, strict=True) if reply == _HAS_MORE]
    return None


def purge(client: Any, queue: str) -> int:
    """Drop the messages that wait in a queue, and return their number.

    The workers of the queue store that their tasks are revoked, as soon as one runs.
    """
    return int(_PURGE.run(client, priority_lists(queue), []))
