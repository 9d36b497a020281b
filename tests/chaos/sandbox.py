"""Runs processes of the batch lane, and checks what they leave in Redis and at the provider."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis

from primarch_fleet import Completion
from scheduler.store.keys import PREFIX, SERVER
from tests.chaos.workload import REFUSED, Expected
from tests.support.batch_fixture import profile
from workers.onebox.simulator import Simulator, VirtualClock
from workers.onebox.simulator.profile import Fault

REPOSITORY = Path(__file__).parents[2]
#: Seconds between two turns of a scheduler, and turns after which the lane must be idle.
TURN_SECONDS, MAX_TURNS = 20.0, 90
#: Hashes whose numbers are 0 while the lane is idle.
SUMS = ("totals:", "reserved")
#: Keys that may stay without an expiry.
PERMANENT = (
    *(PREFIX + name for name in ("groups", "fence", "pauses", *SUMS)),
    *(PREFIX + name for name in ("fleet", "server", "recoveries", "ended")),
    *("_kombu.binding", "realtime"),
)

#: All keys of a database: milliseconds to live, 0 for no expiry, and the dumped value.
Snapshot = dict[bytes, tuple[int, bytes]]


class ProcessEnd(NamedTuple):
    """How a process ended."""

    #: The exit status, negative for a signal.
    status: int
    #: The kill point at which it was killed; "" if it was not.
    killed_at: str
    #: The result of its order and all its kill points, if it was not killed.
    result: Any
    points: list[str]


class Sandbox:
    """A Redis database, a provider, and a zygote that runs one process at a time."""

    def __init__(self, url: str, folder: Path, simulator: Simulator, zygote: Any) -> None:
        self.redis = redis.Redis.from_url(url)
        self.folder = folder
        self.simulator = simulator
        self.clock = cast(VirtualClock, simulator.clock)
        self._zygote = zygote

    def run(
        self,
        role: str,
        kill_at: int | None = None,
        *,
        turns: int = MAX_TURNS,
        pauses: Mapping[int, Callable[[], None]] | None = None,
        **order: Any,
    ) -> ProcessEnd:
        """Run a process to its end.

        Args:
            role: What the process does, see `zygote.Process.run`.
            kill_at: The number of the kill point at which it is killed.
            turns: Most turns of a scheduler.
            pauses: What is done at kill points, by their numbers, while the process waits.
            order: What the role needs.
        """
        actions = {str(number): action for number, action in (pauses or {}).items()}
        order |= {"kill_at": kill_at, "pauses": {name: int(name) for name in actions}}
        self._send({"role": role, "now": self.clock.now(), **order})
        report: dict[str, Any] = {"killed_at": "", "result": None, "points": []}
        turn = 0
        while "ended" not in (message := self._receive()):
            report.update(message)
            if (name := report.pop("pause", "")) in actions:
                actions[name]()
                self._send({})
            if report.pop("turn", False):
                self._send({"now": self._next_turn(turn, turns)})
                turn += 1
        return ProcessEnd(message["ended"], **report)

    def _next_turn(self, turn: int, turns: int) -> float | None:
        """The time of a scheduler's next turn; None to end it."""
        if turn == turns or (turn and self.is_idle()):
            return None
        return self.advance_time(TURN_SECONDS)

    def enqueue(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Reset the sandbox and take the messages of new requests out of their queue."""
        self.redis.flushdb()
        self._reset()
        assert self.run("send", names=names).status == 0
        return [
            json.loads(message)
            for key in self.redis.scan_iter("batch*")
            for message in cast(list[bytes], self.redis.lrange(key, 0, -1))
            if self.redis.delete(key) is not None
        ]

    def park(self, names: Sequence[str]) -> Snapshot:
        """Reset the sandbox and park requests."""
        assert self.run("park", messages=self.enqueue(names)).status == 0
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """A copy of the database."""
        return {
            key: (max(0, self.redis.pttl(key)), cast(bytes, self.redis.dump(key)))
            for key in self.redis.scan_iter()
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Reset the sandbox, with the database of a snapshot."""
        self._write(snapshot)
        self._reset()

    def roll_back(self, snapshot: Snapshot) -> None:
        """Take the database back to a snapshot, as a server does that starts from older files."""
        self._write(snapshot)
        # Each start of a server has a run id of its own, and knows no script.
        self.redis.hset(SERVER, "run_id", "of the server before")
        self.redis.script_flush()

    def _write(self, snapshot: Snapshot) -> None:
        pipe = self.redis.pipeline()
        pipe.flushdb()
        for key, (ttl, value) in snapshot.items():
            pipe.restore(key, ttl, value)
        pipe.execute()

    def advance_time(self, seconds: float) -> float:
        """Advance the clock and the expiry of every key; the new time."""
        keys = list(self.redis.scan_iter())
        pipe = self.redis.pipeline()
        for key in keys:
            pipe.pttl(key)
        ttls = pipe.execute()
        for key, ttl in zip(keys, ttls, strict=True):
            if ttl > 0 and ttl <= seconds * 1000:
                pipe.delete(key)
            elif ttl > 0:
                pipe.pexpire(key, int(ttl - seconds * 1000))
        pipe.execute()
        self.clock.advance(seconds)
        return self.clock.now()

    def is_idle(self) -> bool:
        """Whether no request waits or is withdrawn, and no job is live."""
        return not any(self._keys("waiting:", "jobs", "withdrawals"))

    def outcome(self, name: str) -> str:
        """The text that a task's answer repeats, or the name of its error or state."""
        text = cast(bytes | None, self.redis.get(f"celery-task-meta-{name}"))
        meta = json.loads(text or '{"status": "PENDING"}')
        if meta["status"] == "SUCCESS":
            return _text(meta["result"])
        return str(meta["result"]["exc_type"] if meta["status"] == "FAILURE" else meta["status"])

    def follow_ups(self) -> list[tuple[str, list[str]]]:
        """The follow-up tasks that were sent, with the requests whose outcomes they get."""
        sent = []
        for key in self.redis.scan_iter("realtime*", _type="LIST"):
            for text in cast(list[bytes], self.redis.lrange(key, 0, -1)):
                message = json.loads(text)
                (argument,), _, _ = json.loads(b64decode(message["body"]))
                sent.append((message["headers"]["task"], _names(argument)))
        return sorted(sent)

    def batches(self) -> list[dict[str, Any]]:
        """All batches at the provider."""
        headers = {"Authorization": "Bearer test-key"}
        call = urllib.request.Request(f"{self.simulator.url}/batches?limit=100", headers=headers)
        with urllib.request.urlopen(call) as answer:
            return list(json.load(answer)["data"])

    def problems(self, expected: Expected) -> list[str]:
        """The differences from what must be true in the end."""
        outcomes = [(name, self.outcome(name)) for name in expected.outcomes]
        return [
            *_differences("outcome", outcomes, expected.outcomes.items()),
            *_differences("follow-up", self.follow_ups(), expected.follow_ups),
            *self._leftovers(),
            *self._billing_problems(expected.billed),
        ]

    def _reset(self) -> None:
        self.simulator.reset()
        for path in self.folder.glob("*"):
            path.unlink()

    def _billing_problems(self, expected: Collection[int]) -> Iterator[str]:
        statuses = Counter(batch["status"] for batch in self.batches())
        if sum(statuses.values()) - statuses["failed"] - statuses["cancelled"] > 1:
            yield f"batches: {dict(statuses)}"
        if (billed := self.simulator.invoice()["requests"]) not in expected:
            yield f"{billed} requests billed, not {expected}"

    def _leftovers(self) -> Iterator[str]:
        """What must not be left in Redis and on disk."""
        for key in self.redis.scan_iter():
            name = key.decode()
            if self.redis.ttl(key) < 0 and not name.startswith(PERMANENT):
                yield f"{name} is left"
        for key in self._keys(*SUMS):
            if any(map(int, cast(list[bytes], self.redis.hvals(key)))):
                yield f"{key.decode()} is {self.redis.hgetall(key)}"
        yield from (f"{path.name} is left" for path in self.folder.glob("*"))

    def _keys(self, *names: str) -> list[bytes]:
        return [key for name in names for key in self.redis.scan_iter(f"{PREFIX}{name}*")]

    def _send(self, message: dict[str, Any]) -> None:
        self._zygote.stdin.write(json.dumps(message).encode() + b"\n")
        self._zygote.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._zygote.stdout.readline()
        assert line, "the zygote has ended"
        return dict(json.loads(line))


@contextmanager
def open_sandbox(url: str, folder: Path, env: dict[str, str]) -> Iterator[Sandbox]:
    """Open a sandbox in the Redis database `url`."""
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
        sandbox = Sandbox(url, folder, simulator, zygote)
        try:
            yield sandbox
        finally:
            try:
                zygote.communicate(timeout=30)
            finally:
                zygote.kill()
            sandbox.redis.close()


def _names(argument: Any) -> list[str]:
    """The requests whose outcomes a follow-up gets as its argument."""
    if isinstance(argument, list):
        return [name for item in argument for name in _names(item)]
    return [argument if isinstance(argument, str) else _text(argument)]


def _text(answer: dict[str, Any]) -> str:
    """The text of a request, or of an answer, in which the provider repeats that of the request."""
    if "messages" in answer:
        return str(answer["messages"][0]["content"])
    return Completion.model_validate(answer).text.removeprefix("Simulated answer to: ")


def _differences(kind: str, actual: Iterable[Any], expected: Iterable[Any]) -> list[str]:
    counts = Counter(map(str, actual))
    counts.subtract(map(str, expected))
    return [f"{count:+} {kind} {item}" for item, count in counts.items() if count]
