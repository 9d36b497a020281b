"""A queue of tenants who take turns, without the workers; and what it should do, in Python."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import redis

from primarch_fleet.protocol import TENANT
from primarch_fleet.queues import QueueDepth, count_waiting, priority_lists
from workers.runtime.leases import Leases, Terms
from workers.runtime.scripts import FETCH

QUEUE = "q"
URGENT, LATER, *_ = priority_lists(QUEUE)
KEYS = ["unacked", "unacked_index", URGENT, LATER]
TERMS = Terms("unacked", "unacked_index", "dead", visibility_timeout=60, max_deliveries=99)


def message(name: str, tenant: object) -> str:
    """As kombu writes it; `name` stands for the body."""
    headers = {"task": "t", TENANT: tenant, "id": name}
    return json.dumps({"body": name, "headers": headers, "properties": {"correlation_id": name}})


class Queue:
    """The queue itself: what is fetched from it is told by names."""

    def __init__(self, store: redis.Redis, client: redis.Redis) -> None:
        self.store = store
        self.leases = Leases()
        self.leases.use(client, TERMS)
        self.tags: dict[str, str] = {}  # name of a message -> its lease
        self._fetches = 0

    def put(self, tenant: object, *names: str, into: str = LATER) -> None:
        self.store.lpush(into, *(message(name, tenant) for name in names))

    def fetch(
        self, limit: int = 16, free: int = 100, kept: int = 0, held: dict[str, int] | None = None
    ) -> list[str]:
        """The names of what a worker gets that has so many places free, and kept."""
        self._fetches += 1
        tags = [f"{self._fetches}-{number}" for number in range(min(limit, free))]
        told: list[Any] = [free, kept, json.dumps(held or {}), len(tags), *tags, "1", "1"]
        reply: Any = FETCH.run(self.store, KEYS, told)
        texts = [json.loads(text) for text in reply[2::3]]
        self.tenants = reply[1::3]
        self.tags |= {text["body"]: tag for text, tag in zip(texts, tags, strict=False)}
        return [text["body"] for text in texts]

    def give_back(self, *names: str) -> None:
        self.leases.unread(*(self.tags[name] for name in names))
        self.leases.beat()

    def count(self) -> int:
        return QueueDepth.from_reply(count_waiting(self.store, QUEUE)).depth


@dataclass
class Line:
    """What should wait in one list: that of each tenant, by turns."""

    pushed: list[tuple[str, str]] = field(default_factory=list)
    of: dict[str, list[str]] = field(default_factory=dict)

    def sort(self) -> None:
        for tenant, name in self.pushed:
            self.of.setdefault(tenant, []).append(name)
        self.pushed = []

    def take(self, tenant: str) -> str:
        waiting = self.of.pop(tenant)
        name = waiting.pop(0)
        if waiting:
            self.of[tenant] = waiting
        return name

    def put_back(self, tenant: str, name: str) -> None:
        if tenant not in self.of:
            self.of = {tenant: [], **self.of}
        self.of[tenant].insert(0, name)


@dataclass
class Rule:
    """What a fetch should take, from which list a message came, and whose it is."""

    lines: dict[str, Line] = field(default_factory=lambda: {URGENT: Line(), LATER: Line()})
    origin: dict[str, tuple[str, str]] = field(default_factory=dict)

    def put(self, tenant: str, name: str, into: str) -> None:
        self.lines[into].pushed.append((tenant, name))
        self.origin[name] = into, tenant

    def fetch(self, limit: int, free: int, kept: int, held: Counter[str]) -> list[str]:
        held, taken = Counter(held), list[str]()
        for line in self.lines.values():
            if len(taken) < min(limit, free):
                line.sort()
            while len(taken) < min(limit, free):
                may = [one for one in line.of if free - len(taken) > kept or held[one] < kept]
                if not may:
                    break
                taken.append(line.take(may[0]))
                held[may[0]] += 1
        return taken

    def give_back(self, name: str) -> None:
        into, tenant = self.origin[name]
        self.lines[into].put_back(tenant, name)

    def count(self) -> int:
        return sum(len(one.pushed) + sum(map(len, one.of.values())) for one in self.lines.values())
