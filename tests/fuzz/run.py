"""A run: messages to every queue, chunk by chunk, and what became of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from hypothesis import HealthCheck, Phase, given, seed, settings

from primarch_fleet.queues import priority_lists
from tests.fuzz.encoding import readable_id, stores_no_result
from tests.fuzz.fleet import APPS, QUEUES, FuzzFleet
from tests.fuzz.mutation import mutated, mutated_command
from tests.fuzz.recording import SILENT_TASKS, record
from tests.fuzz.whole import whole_messages

CHUNK = 500
#: Messages of a chunk that Hypothesis makes; the others are mutations of real messages.
WHOLE = 10
#: Mutated control commands, and as many events, that are published with each chunk.
BROADCASTS = 50
CHUNKS_PER_REPORT = 20
#: Seconds that the workers have for a chunk.
CHUNK_SECONDS = 90.0
PING_SECONDS = 20.0
_BROADCAST_CHANNELS = ("/0.celery.pidbox", "/0.celeryev/worker.heartbeat")


@dataclass
class Account:
    """What became of the messages."""

    tried: Counter[str] = field(default_factory=Counter)
    exits: list[str] = field(default_factory=list)
    left: int = 0
    without_outcome: list[str] = field(default_factory=list)
    #: By kind.
    dead_letters: Counter[str] = field(default_factory=Counter)
    deaf: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.exits or self.left or self.without_outcome or self.deaf)

    def __str__(self) -> str:
        lines = [
            f"messages tried: {_counted(self.tried)}",
            f"worker exits: {len(self.exits)}",
            f"dead letters: {_counted(self.dead_letters)}",
            f"tasks without an outcome: {len(self.without_outcome)}",
            f"messages left: {self.left}",
            f"workers that did not answer a ping: {len(self.deaf)}",
        ]
        return "\n".join([*lines, *self.exits[:5], *self.without_outcome[:5]])


def _counted(numbers: Counter[str]) -> str:
    parts = ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()) if number)
    return f"{numbers.total()} ({parts})"


class Run:
    """Sends messages to a fleet and keeps the account.

    Args:
        fleet: Its workers are ready.
        number: Of the run; the same number makes the same messages.
    """

    def __init__(self, fleet: FuzzFleet, number: int) -> None:
        self.account = Account()
        self._fleet, self._source = fleet, random.Random(number)  # noqa: S311
        self._number = number
        self._recorded = record(fleet.server.url, fleet.redis)
        self._tasks = tuple(sorted({message["headers"]["task"] for _, message in self._recorded}))
        self._sent = 0

    def execute(self, messages: int) -> Account:
        """Send so many messages, and wait until each has ended; Ctrl-C ends the run before."""
        chunks = -(-messages // (CHUNK + 2 * BROADCASTS))
        with suppress(KeyboardInterrupt):
            for chunk, whole in enumerate(self._whole(chunks)):
                self._send_chunk(whole)
                if chunk % CHUNKS_PER_REPORT == CHUNKS_PER_REPORT - 1:
                    print(self.account, flush=True)
        counts: Any = self._fleet.redis.hgetall("fleet:dead_letter_counts")
        for name, number in counts.items():
            kind, separator, _ = name.partition(":")
            self.account.dead_letters[kind] += int(number) if separator else 0
        return self.account

    def _whole(self, chunks: int) -> Iterator[list[bytes]]:
        """The messages that Hypothesis makes, for each chunk."""
        made: list[bytes] = []

        @seed(self._number)
        @settings(
            max_examples=chunks * WHOLE,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(whole_messages(self._tasks))
        def make(message: bytes) -> None:
            made.append(message)

        make()
        for chunk in range(chunks):
            yield made[chunk * WHOLE : (chunk + 1) * WHOLE]

    def _send_chunk(self, whole: list[bytes]) -> None:
        texts = [(self._source.choice(QUEUES), text) for text in whole]
        self.account.tried["whole messages by Hypothesis"] += len(texts)
        for _ in range(CHUNK - len(texts)):
            queue, message = self._source.choice(self._recorded)
            self._sent += 1
            task_id = f"fuzz-{self._number}-{self._sent}"
            texts.append((queue, mutated(message, task_id, self._source)))
            self.account.tried["mutated real messages"] += 1
        self._push(texts)
        self._check(texts)

    def _push(self, texts: list[tuple[str, bytes]]) -> None:
        pipeline = self._fleet.redis.pipeline(transaction=False)
        for queue, text in texts:
            pipeline.lpush(self._source.choice(priority_lists(queue)), text)
        for _ in range(BROADCASTS):
            for channel in _BROADCAST_CHANNELS:
                pipeline.publish(channel, mutated_command(self._source))
        self.account.tried["broadcasts"] += BROADCASTS * len(_BROADCAST_CHANNELS)
        pipeline.execute()

    def _check(self, texts: list[tuple[str, bytes]]) -> None:
        deadline = time.monotonic() + CHUNK_SECONDS
        while self._fleet.waiting() and time.monotonic() < deadline:
            self.account.exits += self._fleet.ended()
            time.sleep(0.02)
        self.account.exits += self._fleet.ended()
        self.account.left += self._fleet.waiting()
        self._check_outcomes(texts)
        self._ping()

    def _check_outcomes(self, texts: list[tuple[str, bytes]]) -> None:
        named = {
            task_id: text
            for _, text in texts
            if (task_id := readable_id(text)) and not stores_no_result(text, SILENT_TASKS)
        }
        pipeline = self._fleet.redis.pipeline(transaction=False)
        for task_id in named:
            pipeline.exists(f"celery-task-meta-{task_id}")
        for (task_id, text), exists in zip(named.items(), pipeline.execute(), strict=True):
            if not exists:
                self.account.without_outcome.append(f"{task_id[:100]}: {text[:3000]!r}")

    def _ping(self) -> None:
        """Ask the workers whether they still read control commands."""
        names = [f"{lane}@fuzz" for lane in APPS]
        app = Celery(broker=self._fleet.server.url, set_as_current=False)
        with app, app.connection_for_write() as connection:
            inspect = app.control.inspect(
                names, timeout=PING_SECONDS, limit=len(names), connection=connection
            )
            answers = inspect.ping() or {}
        self.account.deaf += set(names) - answers.keys()
