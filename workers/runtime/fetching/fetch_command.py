"""Builds the command by which a worker fetches messages: the KEYS and ARGV of its Lua scripts.

Their order is that of the legends in lua/take.lua, with which both scripts start, lua/fetch.lua and
lua/fetch_by_prefix.lua. No other module knows it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from primarch_fleet.redis_support import LuaScript
from primarch_fleet.reservations import Reserved
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.prefix_affinity import AffinityLimits
from workers.runtime.scripts import FETCH, FETCH_BY_PREFIX

#: What a reply has after its messages if others stay.
_STAY = "1"


class FetchCommand(NamedTuple):
    """A script with its KEYS and ARGV."""

    script: LuaScript
    keys: list[str]
    args: list[str | float]

    def within_rates(self, allowances: Mapping[str, int]) -> Self:
        """Take no more messages of a task than its rate limit allows, by the name of the task."""
        return self._replace(args=[*self.args, json.dumps(dict(allowances))])


class Fetched(NamedTuple):
    """A message of the reply of a script."""

    #: The Redis list that it comes from.
    source: str
    tenant: str
    text: str
    #: As Redis has found it in the message; empty if it could not.
    task_id: str
    #: Whether the task is cancelled and must not start.
    is_cancelled: bool
    #: What the task has in a tenant's budget.
    reserved: Reserved | None


class FetchReply(NamedTuple):
    """The reply of a script."""

    #: In the order of the tags.
    messages: list[Fetched]
    #: Whether messages stay which the worker may not take now.
    stay: bool
    #: The paused queues that have messages.
    paused: frozenset[str]


class Affinity(NamedTuple):
    """What a fetch by prefix affinity depends on."""

    #: As `prefix_affinity.keys` returns them.
    keys: Sequence[str]
    #: The unique name of the worker.
    worker: str
    #: Messages that the worker holds.
    load: int
    limits: AffinityLimits


def fetch(
    lease_keys: Sequence[str],
    lists: Mapping[str, bool],
    slots: FreeSlots,
    tags: Sequence[str],
) -> FetchCommand:
    """Fetch messages, one of each tenant in turn.

    Args:
        lease_keys: The hash and the sorted set of leases.
        lists: Redis lists, most urgent first, and whether messages from there are leased.
        slots: The slots of the worker.
        tags: A lease tag for each message to fetch, unique to this fetch; at most `slots.free`.
    """
    leased = ["1" if is_leased else "0" for is_leased in lists.values()]
    args = [*_slots_and_tags(slots, tags), *leased]
    return FetchCommand(FETCH, [*lease_keys, *lists], args)


def fetch_near(
    lease_keys: Sequence[str],
    lists: Sequence[str],
    slots: FreeSlots,
    tags: Sequence[str],
    affinity: Affinity,
) -> FetchCommand:
    """Fetch messages as `fetch` does, all leased, and leave those that suit another worker better.

    Args:
        lists: Redis lists of one queue, most urgent first.
    """
    limits = affinity.limits
    args: list[str | float] = [
        *_slots_and_tags(slots, tags),
        affinity.worker,
        affinity.load,
        limits.patience_seconds,
        limits.full_patience_seconds,
        limits.max_load_factor,
        limits.min_load,
        limits.max_passed_over,
        limits.max_prefixes,
    ]
    return FetchCommand(FETCH_BY_PREFIX, [*lease_keys, *affinity.keys, *lists], args)


def read_reply(reply: Sequence[bytes | str]) -> FetchReply:
    """Decode the reply of either script."""
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else one for one in reply]
    size = len(Fetched._fields)
    count = len(texts) // size
    columns = (texts[start : count * size : size] for start in range(size))
    messages = [
        Fetched(source, tenant, text, task_id, bool(mark), Reserved.parse(reserved))
        for source, tenant, text, task_id, mark, reserved in zip(*columns, strict=True)
    ]
    rest = texts[count * size :]
    paused = rest.pop() if rest and rest[-1] != _STAY else "[]"
    return FetchReply(messages, stay=bool(rest), paused=frozenset(json.loads(paused)))


def _slots_and_tags(slots: FreeSlots, tags: Sequence[str]) -> list[str | float]:
    held = json.dumps(slots.held if slots.reserved else {})  # read only if slots are reserved
    start = os.path.commonprefix(tags)  # noqa: RUF071 - by characters, as is meant here
    ends = ",".join(tag.removeprefix(start) for tag in tags)
    return [slots.free, slots.reserved, held, len(tags), start, ends]
