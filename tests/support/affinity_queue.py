"""A queue that workers share by prefix affinity, without the workers."""

import json
from itertools import chain
from typing import Any

import redis

from primarch_fleet.protocol import PREFIXES, TENANT
from workers.runtime import prefix_affinity
from workers.runtime.scripts import FETCH_NEAR

SYSTEM, ONE, TWO, THREE = "aa", "b1", "b2", "b3"
QUEUE = "local.m"
URGENT, LATER = QUEUE, f"{QUEUE}\x06\x163"
OWNERS, RECENT, WORKERS = prefix_affinity.keys(QUEUE)
#: What the name of a list has behind it that holds what no tenant has sent.
ANYBODY = "\x06\x16turns\x06\x16"
KEYS = ["unacked", "unacked_index", OWNERS, RECENT, WORKERS, URGENT, LATER]
FOR_EVER = 3_600.0  # seconds: the patience of a test that decides itself who is gone
KNOBS = {
    "patience": FOR_EVER,
    "patience_full": FOR_EVER,
    "slack": prefix_affinity.SLACK,
    "least": 1,
    "window": prefix_affinity.WINDOW,
    "remembered": prefix_affinity.REMEMBERED,
}


def message(name: str, *prefixes: str, tenant: str | None = None) -> str:
    """As kombu writes it; `name` stands for the body."""
    headers = {"task": "local.complete", PREFIXES: ",".join(prefixes)} if prefixes else {}
    headers |= {TENANT: tenant} if tenant else {}
    return json.dumps({"body": name, "headers": headers, "properties": {}})


class Queue:
    """One queue, and its workers' fetches, by the script itself."""

    def __init__(self, store: redis.Redis) -> None:
        self.store = store
        self.held: dict[str, list[str]] = {}  # worker -> names of the messages it works on
        self.fetches = 0

    def put(self, name: str, *prefixes: str, into: str = LATER, tenant: str | None = None) -> None:
        self.store.lpush(into, message(name, *prefixes, tenant=tenant))

    def fetch(
        self,
        worker: str,
        limit: int = 16,
        room: int = 100,
        places: tuple[int, str] = (0, "{}"),
        **knobs: float,
    ) -> list[str]:
        """The names of what a worker gets; `places` are how many are kept, and who holds any."""
        held = self.held.setdefault(worker, [])
        self.fetches += 1
        tags = [f"{self.fetches}-{number}" for number in range(min(limit, room))]
        knobs = KNOBS | knobs
        told: list[str | float] = [room, *places, len(tags), *tags]
        told += [worker, len(held), *knobs.values()]
        reply: Any = FETCH_NEAR.run(self.store, KEYS, told)
        assert len(reply) <= 3 * len(tags)
        taken = [json.loads(text)["body"] for text in reply[2::3]]
        for tag, source, text in zip(tags, reply[::3], reply[2::3], strict=False):
            assert self.store.hget("unacked", tag) == f'[{text},"",{json.dumps(source)}]'
            assert self.store.zscore("unacked_index", tag)
        held += taken
        return taken

    def end(self, worker: str, count: int = 1) -> None:
        """A worker is done with its oldest messages."""
        del self.held[worker][:count]

    def silence(self, worker: str, seconds: float = FOR_EVER) -> None:
        """A worker has last fetched so much longer ago."""
        said = self.store.hget(WORKERS, worker)
        if said:
            at, rest = str(said).split(" ", 1)
            self.store.hset(WORKERS, worker, f"{float(at) - seconds - 60} {rest}")

    def waiting(self) -> list[str]:
        """The names of the messages without a tenant that wait."""
        sorted_first = ((f"{source}{ANYBODY}", source) for source in (URGENT, LATER))
        texts = [self.store.lrange(one, 0, -1)[::-1] for pair in sorted_first for one in pair]
        return [json.loads(text)["body"] for text in chain(*texts)]
