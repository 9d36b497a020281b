"""Sorts what producers have pushed while the workers of a queue are busy, and so do not fetch.

The list with the queue's name counts messages with a priority once they are sorted, and tools such
as KEDA read that list only.
"""

from __future__ import annotations

from collections import Counter

import redis

from primarch_fleet.queues import priority_lists
from workers.runtime.fetching import fetch_command
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.leases.leases import LEASE_KEYS

#: Scripts of one call, each of a few milliseconds; the next call goes on.
MAX_SCRIPTS = 20


def sort_pushed(client: redis.Redis, queue: str) -> None:
    """Sort the messages with a priority, notice a purge, and take no message.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    lists = priority_lists(queue)
    leased = dict.fromkeys(lists, True)
    script, keys, args = fetch_command.fetch(LEASE_KEYS, leased, FreeSlots(0, 0, Counter()), [])
    unsorted = lists
    for _ in range(MAX_SCRIPTS):
        if not client.exists(*unsorted):
            return
        script.run(client, keys, args)
        unsorted = lists[1:]
