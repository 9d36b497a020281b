"""What waits in the queues, whether workers have sorted it by tenant or not seen it yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from primarch_fleet import protocol
from primarch_fleet.redis_support import LuaScript

#: Separates a queue's name from a priority in the names of its lists:
#: https://docs.celeryq.dev/en/stable/userguide/routing.html#redis-message-priorities
SEPARATOR = "\x06\x16"
#: The priorities that the Redis transport has lists for, most urgent first.
PRIORITY_STEPS = (0, 3, 6, 9)
#: Tenants of one list at whose messages is looked for the oldest, in their turns: with more, the
#: oldest found may not be the oldest there is.
MAX_SCANNED_MESSAGES = 100

_LUA = Path(__file__).with_name("lua") / "queue"
#: The part that scripts start with that know how a queue is stored.
TURNS = _LUA / "turns.lua"
_COUNT_WAITING = LuaScript.load(TURNS, _LUA / "count_waiting.lua")


class QueueDepth(NamedTuple):
    """What waits in one queue."""

    depth: int
    #: Unix seconds at which the oldest was submitted; None when nothing waits that says.
    oldest_at: float | None
    #: How many of them wait in each of its `lists`.
    counts: tuple[int, ...] = ()

    @classmethod
    def from_reply(cls, answer: Sequence[Any]) -> Self:
        """From what `count_waiting` is told of a queue."""
        times = [float(one) for one in answer[1::2] if one]
        return cls(sum(answer[::2]), min(times, default=None), tuple(answer[::2]))

    def lower_priority(self, step: int) -> int:
        """How many are less urgent than a message of this priority."""
        return sum(self.counts[PRIORITY_STEPS.index(step) + 1 :])

    def oldest_wait_seconds(self, now: tuple[int, int]) -> float | None:
        """Seconds that the oldest has waited, by what TIME said; None as in `since`."""
        return None if self.oldest_at is None else max(0.0, now[0] + now[1] / 1e6 - self.oldest_at)


def priority_lists(queue: str) -> list[str]:
    """Those of a queue to which producers send, one a priority."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]


def count_waiting(client: Any, queue: str) -> Any:
    """Read the depth of a queue, for `QueueDepth.from_reply`.

    Args:
        client: Or a ScriptPipeline, whose `execute` returns the reply then.
    """
    arguments = [f'"{protocol.SUBMITTED_AT}"', MAX_SCANNED_MESSAGES]
    return _COUNT_WAITING.run(client, priority_lists(queue), arguments)
