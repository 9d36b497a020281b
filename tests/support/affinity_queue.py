"""A queue that workers share by prefix affinity, without the workers."""

import json
from collections import Counter
from itertools import chain
from typing import Any

import redis

from primarch_fleet.protocol import PREFIXES, TENANT
from primarch_fleet.queues import priority_lists
from workers.runtime.fetching import fetch_command, prefix_affinity
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.fetch_command import Affinity
from workers.runtime.fetching.prefix_affinity import AffinityLimits
from workers.runtime.leases.leases import LEASE_KEYS, LEASES_KEY, RENEWALS_KEY

SYSTEM, ONE, TWO, THREE = "aa", "b1", "b2", "b3"
QUEUE = "local.m"
URGENT, LATER, *_ = priority_lists(QUEUE)
AFFINITY_KEYS = prefix_affinity.keys(QUEUE)
OWNERS, RECENT, WORKERS = AFFINITY_KEYS
#: The end of the name of a list with the messages that have no tenant.
NO_TENANT = "\x06\x16turns\x06\x16"
FOREVER = 3_600.0  # seconds: the patience in a test that decides by itself which worker is gone
LIMITS = AffinityLimits(patience_seconds=FOREVER, full_patience_seconds=FOREVER, min_load=1)


def message(name: str, *prefixes: str, tenant: str | None = None) -> str:
    """A message as kombu encodes it; `name` stands for the body. It is urgent in an urgent list."""
    headers = {"task": "local.complete", PREFIXES: ",".join(prefixes)} if prefixes else {}
    headers |= {TENANT: tenant} if tenant else {}
    return json.dumps({"body": name, "headers": headers, "properties": {"priority": 1}})


class Queue:
    """One queue, and its workers' fetches by the real script."""

    def __init__(self, store: redis.Redis) -> None:
        self.store = store
        self.held: dict[str, list[str]] = {}  # worker -> names of the messages that it holds
        self.fetches = 0

    def put(self, name: str, *prefixes: str, into: str = LATER, tenant: str | None = None) -> None:
        self.store.lpush(into, message(name, *prefixes, tenant=tenant))

    def fetch(
        self,
        worker: str,
        limit: int = 16,
        room: int = 100,
        reserved: int = 0,
        held_by_tenant: dict[str, int] | None = None,
        **limits: Any,
    ) -> list[str]:
        """Return the names of the messages that a worker with `room` free slots gets.

        Args:
            limits: Fields of AffinityLimits, in place of those of `LIMITS`.
        """
        held = self.held.setdefault(worker, [])
        self.fetches += 1
        tags = [f"{self.fetches}-{number}" for number in range(min(limit, room))]
        slots = FreeSlots(room, reserved, Counter(held_by_tenant))
        affinity = Affinity(AFFINITY_KEYS, worker, len(held), LIMITS._replace(**limits))
        reply = self.run(
            fetch_command.fetch_near(LEASE_KEYS, [URGENT, LATER], slots, tags, affinity)
        )
        fetched = fetch_command.read_reply(reply).messages
        assert len(fetched) <= len(tags)
        taken = [json.loads(one.text)["body"] for one in fetched]
        for tag, one in zip(tags, fetched, strict=False):
            entry = f'[{one.text},"",{json.dumps(one.source)}]'
            assert self.store.hget(LEASES_KEY, tag) == entry
            assert self.store.zscore(RENEWALS_KEY, tag)
        held += taken
        return taken

    def run(self, command: fetch_command.FetchCommand) -> Any:
        return command.script.run(self.store, command.keys, command.args)

    def end(self, worker: str, count: int = 1) -> None:
        """End a worker's oldest messages."""
        del self.held[worker][:count]

    def silence(self, worker: str, seconds: float = FOREVER) -> None:
        """Date a worker's last fetch back by so many seconds and a minute."""
        load = self.store.hget(WORKERS, worker)
        if load:
            at, rest = str(load).split(" ", 1)
            self.store.hset(WORKERS, worker, f"{float(at) - seconds - 60} {rest}")

    def waiting(self) -> list[str]:
        """Return the names of the messages without a tenant that wait."""
        lists = [f"{source}{suffix}" for source in (URGENT, LATER) for suffix in (NO_TENANT, "")]
        texts = chain(*(self.store.lrange(name, 0, -1)[::-1] for name in lists))
        bodies = [json.loads(text)["body"] for text in texts]
        return [body for body in bodies if body]  # those of placeholders are empty
