"""Lives of the batch lane's processes, and what the world looks like after them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis

from primarch_fleet import Completion
from scheduler.store.keys import PREFIX
from tests.chaos.workload import REFUSED, Fate
from tests.support.batch_fixture import profile
from workers.onebox.simulator import Simulator, VirtualClock
from workers.onebox.simulator.profile import Fault

REPOSITORY = Path(__file__).parents[2]
#: Seconds between two turns of a scheduler, and turns within which it has to come to rest.
TURN, TURNS = 20.0, 90
#: Hashes of numbers that are 0 while nothing waits and no job is live.
SUMS = ("totals:", "reserved")
#: What stays in Redis for ever: what the lane and the broker know of themselves, and messages.
LASTING = (
    *(PREFIX + name for name in ("groups", "fence", "pauses", *SUMS)),
    *("_kombu.binding", "realtime"),
)

Dump = dict[bytes, tuple[int, bytes]]


class End(NamedTuple):
    """How a process ended: its exit status; the moment at which it died, or, of one that did not,
    what it had to say and all its moments.
    """

    status: int
    died: str
    result: Any
    moments: list[str]


class World:
    """One Redis database, one provider and one zygote, in which one process lives at a time."""

    def __init__(self, url: str, folder: Path, simulator: Simulator, zygote: Any) -> None:
        self.redis = redis.Redis.from_url(url)
        self.folder = folder
        self.simulator = simulator
        self.clock = cast(VirtualClock, simulator.clock)
        self._zygote = zygote

    def live(
        self, role: str, dies_at: int | None = None, *, turns: int = TURNS, **order: Any
    ) -> End:
        """Have a process live, to its end or to a moment; a scheduler, for so many turns."""
        self._tell({"role": role, "dies_at": dies_at, "now": self.clock.now(), **order})
        heard: dict[str, Any] = {"died": "", "result": None, "moments": []}
        turn = 0
        while "ended" not in (message := self._hear()):
            heard.update(message)
            if heard.pop("turn", False):
                self._tell({"now": self._next(turn, turns)})
                turn += 1
        return End(message["ended"], **heard)

    def _next(self, turn: int, turns: int) -> float | None:
        """The time of a scheduler's next turn; None for an end."""
        return None if turn == turns or (turn and self.rests()) else self.pass_time(TURN)

    def begin(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """An empty world but for messages that nobody took yet; gives them."""
        self.redis.flushdb()
        self._begin()
        assert self.live("send", names=names).status == 0
        return [
            json.loads(message)
            for key in self.redis.scan_iter("batch*")
            for message in cast(list[bytes], self.redis.lrange(key, 0, -1))
            if self.redis.delete(key) is not None
        ]

    def parked(self, names: Sequence[str]) -> Dump:
        """A world in which these requests were parked."""
        assert self.live("park", messages=self.begin(names)).status == 0
        return self.dump()

    def dump(self) -> Dump:
        """All of Redis."""
        return {
            key: (max(0, self.redis.pttl(key)), cast(bytes, self.redis.dump(key)))
            for key in self.redis.scan_iter()
        }

    def restore(self, dump: Dump) -> None:
        """Redis as it was, a provider that was asked nothing and an empty folder."""
        pipe = self.redis.pipeline()
        pipe.flushdb()
        for key, (ttl, value) in dump.items():
            pipe.restore(key, ttl, value)
        pipe.execute()
        self._begin()

    def pass_time(self, seconds: float) -> float:
        """Let time pass, everywhere; what it is then."""
        keys = list(self.redis.scan_iter())
        pipe = self.redis.pipeline()
        for key in keys:
            pipe.pttl(key)
        left = pipe.execute()
        for key, ttl in zip(keys, left, strict=True):
            if ttl > 0 and ttl <= seconds * 1000:
                pipe.delete(key)
            elif ttl > 0:
                pipe.pexpire(key, int(ttl - seconds * 1000))
        pipe.execute()
        self.clock.advance(seconds)
        return self.clock.now()

    def rests(self) -> bool:
        """Whether nothing waits or leaves and no job is live."""
        return not any(self._keys("waiting:", "jobs", "withdrawals"))

    def outcome(self, name: str) -> str:
        """What a task's answer is to, or the name of its error; its state when it has none."""
        text = cast(bytes | None, self.redis.get(f"celery-task-meta-{name}"))
        meta = json.loads(text or '{"status": "PENDING"}')
        if meta["status"] == "SUCCESS":
            return _asked(meta["result"])
        return str(meta["result"]["exc_type"] if meta["status"] == "FAILURE" else meta["status"])

    def followers(self) -> list[tuple[str, list[str]]]:
        """The messages sent for tasks to follow, and the requests that each hears of."""
        found = []
        for key in self.redis.scan_iter("realtime*", _type="LIST"):
            for text in cast(list[bytes], self.redis.lrange(key, 0, -1)):
                message = json.loads(text)
                (heard,), _, _ = json.loads(b64decode(message["body"]))
                found.append((message["headers"]["task"], _names(heard)))
        return sorted(found)

    def batches(self) -> list[dict[str, Any]]:
        """All batches at the provider."""
        headers = {"Authorization": "Bearer test-key"}
        call = urllib.request.Request(f"{self.simulator.url}/batches?limit=100", headers=headers)
        with urllib.request.urlopen(call) as answer:
            return list(json.load(answer)["data"])

    def wrongs(self, fate: Fate) -> list[str]:
        """What is not as it has to be in the end."""
        outcomes = [(name, self.outcome(name)) for name in fate.outcomes]
        return [
            *_differences("outcome", outcomes, fate.outcomes.items()),
            *_differences("message", self.followers(), fate.followers),
            *self._left(),
            *self._bill(fate.billed),
        ]

    def _begin(self) -> None:
        self.simulator.reset()
        for path in self.folder.glob("*"):
            path.unlink()

    def _bill(self, expected: Collection[int]) -> Iterator[str]:
        statuses = Counter(batch["status"] for batch in self.batches())
        if sum(statuses.values()) - statuses["failed"] - statuses["cancelled"] > 1:
            yield f"batches: {dict(statuses)}"
        if (billed := self.simulator.invoice()["requests"]) not in expected:
            yield f"{billed} requests billed, not {expected}"

    def _left(self) -> Iterator[str]:
        """What should not be left in Redis and on disk."""
        for key in self.redis.scan_iter():
            name = key.decode()
            if self.redis.ttl(key) < 0 and not name.startswith(LASTING):
                yield f"{name} is left"
        for key in self._keys(*SUMS):
            if any(map(int, cast(list[bytes], self.redis.hvals(key)))):
                yield f"{key.decode()} is {self.redis.hgetall(key)}"
        yield from (f"{path.name} is left" for path in self.folder.glob("*"))

    def _keys(self, *names: str) -> list[bytes]:
        return [key for name in names for key in self.redis.scan_iter(f"{PREFIX}{name}*")]

    def _tell(self, message: dict[str, Any]) -> None:
        self._zygote.stdin.write(json.dumps(message).encode() + b"\n")
        self._zygote.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        line = self._zygote.stdout.readline()
        assert line, "the zygote is gone"
        return dict(json.loads(line))


@contextmanager
def world(url: str, folder: Path, env: dict[str, str]) -> Iterator[World]:
    """A world of its own, in the Redis database `url`."""
    refused = Fault(scope="line", contains=REFUSED, status=400, code="bad")
    offer = profile(refused, in_progress=30)
    command = [sys.executable, "-m", "tests.chaos.zygote"]
    folder.mkdir()
    with Simulator(offer, VirtualClock(time.time())) as simulator:
        zygote = subprocess.Popen(
            [*command, simulator.url, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={**env, "FLEET_REDIS_URL": url},
        )
        made = World(url, folder, simulator, zygote)
        try:
            yield made
        finally:
            zygote.communicate()
            made.redis.close()


def _names(heard: Any) -> list[str]:
    """The requests whose outcomes a follower was given."""
    if isinstance(heard, list):
        return [name for one in heard for name in _names(one)]
    return [heard if isinstance(heard, str) else _asked(heard)]


def _asked(answer: dict[str, Any]) -> str:
    """The text of a request, or of the one that was answered: the provider repeats it."""
    if "messages" in answer:
        return str(answer["messages"][0]["content"])
    return Completion.model_validate(answer).text.removeprefix("Simulated answer to: ")


def _differences(kind: str, found: Iterable[Any], expected: Iterable[Any]) -> list[str]:
    counts = Counter(map(str, found))
    counts.subtract(map(str, expected))
    return [f"{count:+} {kind} {one}" for one, count in counts.items() if count]
