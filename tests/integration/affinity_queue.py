"""A queue that workers share by prefix affinity, without the workers."""

import json
from typing import Any

import redis

from primarch_fleet.wire import PREFIXES
from workers import affinity
from workers.leases import LUA

SYSTEM, ONE, TWO, THREE = "aa", "b1", "b2", "b3"
QUEUE = "local.m"
URGENT, LATER = QUEUE, f"{QUEUE}\x06\x163"
OWNERS, RECENT, WORKERS = affinity.keys(QUEUE)
KEYS = ["unacked", "unacked_index", OWNERS, RECENT, WORKERS, URGENT, LATER]
FOR_EVER = 3_600.0  # seconds: the patience of a test that decides itself who is gone
KNOBS = {
    "patience": FOR_EVER,
    "patience_full": FOR_EVER,
    "slack": affinity.SLACK,
    "least": 1,
    "window": affinity.WINDOW,
    "remembered": affinity.REMEMBERED,
}


def message(name: str, *prefixes: str) -> str:
    """As kombu writes it; `name` stands for the body."""
    headers = {"task": "local.complete", PREFIXES: ",".join(prefixes)} if prefixes else {}
    return json.dumps({"body": name, "headers": headers, "properties": {}})


class Queue:
    """One queue, and its workers' fetches, by the script itself."""

    def __init__(self, store: redis.Redis) -> None:
        self.store = store
        self.held: dict[str, list[str]] = {}  # worker -> names of the messages it works on
        self.fetches = 0

    def put(self, name: str, *prefixes: str, into: str = LATER) -> None:
        self.store.lpush(into, message(name, *prefixes))

    def fetch(self, worker: str, limit: int = 16, room: int = 100, **knobs: float) -> list[str]:
        """The names of the messages that a worker gets."""
        held = self.held.setdefault(worker, [])
        self.fetches += 1
        tags = [f"{self.fetches}-{number}" for number in range(min(limit, room))]
        knobs = KNOBS | knobs
        told: list[str | float] = [worker, len(held), room, *knobs.values()]
        reply: Any = self.store.eval(LUA["fetch_near"], len(KEYS), *KEYS, *told, *tags)
        assert len(reply) <= 2 * len(tags)
        taken = [json.loads(text)["body"] for text in reply[1::2]]
        for tag, source, text in zip(tags, reply[::2], reply[1::2], strict=False):
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
        lists = (self.store.lrange(source, 0, -1) for source in (URGENT, LATER))
        return [json.loads(text)["body"] for texts in lists for text in reversed(texts)]
