"""Which queues a worker consumes, with a consumer that stands for Celery's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.clock import Clock
from workers.observability.consumption import STALE_SECONDS, Consumption
from workers.runtime.loop import event_loop


class StubConsumer:
    """A consumer of two queues on a hub whose timers the test fires."""

    def __init__(self) -> None:
        self.cancelled: set[str] = set()
        self.timers: list[Any] = []
        self.ready: list[Any] = []
        self.pool = SimpleNamespace(num_processes=1)
        self.hub = SimpleNamespace(
            call_repeatedly=lambda _, *call: self.timers.append(call),
            call_soon=lambda *call: self.ready.append(call),
        )
        queues = [SimpleNamespace(name="one"), SimpleNamespace(name="two")]
        self.task_consumer = SimpleNamespace(
            queues=queues, consuming_from=lambda queue: queue.name not in self.cancelled
        )

    def turn(self) -> None:
        for look, *args in (*self.ready, *self.timers):
            look(*args)
        self.ready.clear()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An event loop that answers at once, or not at all."""
    loop = SimpleNamespace(hangs=False)
    loop.call_soon_threadsafe = lambda call, *args: loop.hangs or call(*args)
    monkeypatch.setattr(event_loop, "get", lambda: loop)
    return loop


@pytest.fixture
def clock(loop: SimpleNamespace) -> Clock:
    return Clock()


@pytest.fixture
def consumer() -> StubConsumer:
    return StubConsumer()


@pytest.fixture
def watched(clock: Clock, consumer: StubConsumer) -> Consumption:
    watched = Consumption(clock)
    watched.watch(consumer)
    consumer.turn()
    return watched


def test_a_consumer_that_reconnects_serves_its_queues_meanwhile(
    watched: Consumption, consumer: StubConsumer
) -> None:
    changes: list[frozenset[str]] = []
    watched.on_change = lambda: changes.append(watched.queues())
    consumer.cancelled |= {"one", "two"}  # until the hub turns
    watched.watch(consumer)
    consumer.cancelled.clear()
    consumer.turn()
    assert watched.queues() == {"one", "two"}
    assert changes == []


def test_a_cancelled_queue_is_not_consumed_and_the_change_is_told_once(
    watched: Consumption, consumer: StubConsumer
) -> None:
    changes: list[frozenset[str]] = []
    watched.on_change = lambda: changes.append(watched.queues())
    consumer.cancelled.add("two")
    consumer.turn()
    consumer.turn()
    assert changes == [{"one"}]
    watched.end()
    assert changes == [{"one"}, frozenset()]


def test_nothing_is_consumed_while_the_hub_does_not_turn(
    watched: Consumption, consumer: StubConsumer, clock: Clock
) -> None:
    clock.now += STALE_SECONDS + 1
    assert watched.queues() == frozenset()
    changes: list[frozenset[str]] = []
    watched.on_change = lambda: changes.append(watched.queues())
    consumer.turn()
    assert changes == [{"one", "two"}]


def test_nothing_is_consumed_while_the_event_loop_hangs(
    watched: Consumption, consumer: StubConsumer, clock: Clock, loop: SimpleNamespace
) -> None:
    loop.hangs = True
    clock.now += STALE_SECONDS + 1
    consumer.turn()
    assert watched.queues() == frozenset()


def test_nothing_is_consumed_by_a_pool_without_places(
    watched: Consumption, consumer: StubConsumer
) -> None:
    consumer.pool.num_processes = 0
    consumer.turn()
    assert watched.queues() == frozenset()
