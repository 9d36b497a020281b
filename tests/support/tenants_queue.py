"""A queue whose tenants take turns, without the workers; and a model of it in Python."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import redis

from primarch_fleet.protocol import TENANT
from primarch_fleet.queues import QueueDepth, count_waiting, priority_lists
from workers.runtime.fetching import fetch_command
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.leases.leases import LEASE_KEYS, Leases, LeaseSettings

QUEUE = "q"
URGENT, LATER, *_ = priority_lists(QUEUE)
SETTINGS = LeaseSettings(visibility_timeout=60, max_deliveries=99)


def message(name: str, tenant: object) -> str:
    """A message as kombu encodes it; `name` stands for the body. It is urgent in an urgent list."""
    headers = {"task": "t", TENANT: tenant, "id": name}
    properties = {"correlation_id": name, "priority": 1}
    return json.dumps({"body": name, "headers": headers, "properties": properties})


def fetch_from(
    store: redis.Redis, *lists: str, tags: tuple[str, ...] = ("tag",)
) -> list[fetch_command.Fetched]:
    """Fetch from these Redis lists as a worker with free slots."""
    slots = FreeSlots(9, 0, Counter())
    command = fetch_command.fetch(LEASE_KEYS, dict.fromkeys(lists, True), slots, tags)
    return fetch_command.read_reply(command.script.run(store, command.keys, command.args)).messages


class Queue:
    """A real queue, whose messages have names."""

    def __init__(self, store: redis.Redis, client: redis.Redis) -> None:
        self.store = store
        self.leases = Leases()
        self.leases.connect(client, SETTINGS)
        self.tags: dict[str, str] = {}  # name of a message -> its lease
        self._fetches = 0

    def put(self, tenant: object, *names: str, into: str = LATER) -> None:
        self.store.lpush(into, *(message(name, tenant) for name in names))

    def fetch(
        self,
        limit: int = 16,
        free: int = 100,
        reserved: int = 0,
        held: dict[str, int] | None = None,
    ) -> list[str]:
        """Return the names that a worker gets which has so many slots free, and reserved."""
        self._fetches += 1
        tags = [f"{self._fetches}-{number}" for number in range(min(limit, free))]
        slots = FreeSlots(free, reserved, Counter(held))
        lists = {URGENT: True, LATER: True}
        script, keys, args = fetch_command.fetch(LEASE_KEYS, lists, slots, tags)
        reply: Any = script.run(self.store, keys, args)
        fetched = fetch_command.read_reply(reply).messages
        texts = [json.loads(one.text) for one in fetched]
        self.tenants = [one.tenant for one in fetched]
        self.tags |= {text["body"]: tag for text, tag in zip(texts, tags, strict=False)}
        return [text["body"] for text in texts]

    def give_back(self, *names: str) -> None:
        self.leases.abandon(*(self.tags[name] for name in names))
        self.leases.renew()

    def count(self) -> int:
        return QueueDepth.from_reply(count_waiting(self.store, QUEUE)).depth


@dataclass
class ModelList:
    """The messages of one Redis list: pushed and not sorted yet, and of each tenant, by turns."""

    pushed: list[tuple[str, str]] = field(default_factory=list)
    by_tenant: dict[str, list[str]] = field(default_factory=dict)

    def sort(self) -> None:
        for tenant, name in self.pushed:
            self.by_tenant.setdefault(tenant, []).append(name)
        self.pushed = []

    def take(self, tenant: str) -> str:
        waiting = self.by_tenant.pop(tenant)
        name = waiting.pop(0)
        if waiting:
            self.by_tenant[tenant] = waiting
        return name

    def put_back(self, tenant: str, name: str) -> None:
        if tenant not in self.by_tenant:
            self.by_tenant = {tenant: [], **self.by_tenant}
        self.by_tenant[tenant].insert(0, name)

    def count(self) -> int:
        return len(self.pushed) + sum(map(len, self.by_tenant.values()))


@dataclass
class ModelQueue:
    """What a fetch should take."""

    lists: dict[str, ModelList] = field(
        default_factory=lambda: {URGENT: ModelList(), LATER: ModelList()}
    )
    origin: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> list, tenant

    def put(self, tenant: str, name: str, into: str) -> None:
        self.lists[into].pushed.append((tenant, name))
        self.origin[name] = into, tenant

    def fetch(self, limit: int, free: int, reserved: int, held: Counter[str]) -> list[str]:
        held, taken = Counter(held), list[str]()
        for waiting in self.lists.values():
            if len(taken) < min(limit, free):
                waiting.sort()
            while len(taken) < min(limit, free):
                eligible = [
                    tenant
                    for tenant in waiting.by_tenant
                    if free - len(taken) > reserved or held[tenant] < reserved
                ]
                if not eligible:
                    break
                taken.append(waiting.take(eligible[0]))
                held[eligible[0]] += 1
        return taken

    def give_back(self, name: str) -> None:
        into, tenant = self.origin[name]
        self.lists[into].put_back(tenant, name)

    def count(self) -> int:
        return sum(waiting.count() for waiting in self.lists.values())
