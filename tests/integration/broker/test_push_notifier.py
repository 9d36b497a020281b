"""An idle worker hears of what comes, and does not rely on it: on a real server, in kombu's hub."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu.asynchronous import Hub

from tests.integration.conftest import Producer, StartWorker, eventually
from workers.runtime import fetch_timer
from workers.runtime.fetch_timer import FetchTimer
from workers.runtime.push_notifier import PushNotifier

#: Seconds in which what has happened is heard of, and that no bell has rung is believed.
SOON = 0.1
#: Seconds between two looks of a worker that does not look by itself while a test lasts.
NEVER = 600


class Turned:
    """A hub that turns while a test waits."""

    def __init__(self) -> None:
        self.hub: Any = Hub()
        self.hub.call_repeatedly(0.005, lambda: None)
        self._loop = self.hub.create_loop()
        self.rung = 0

    @property
    def scheduled(self) -> int:
        """How often it is to wake by itself, by what it knows now."""
        return len(self.hub.timer._queue)

    def ring(self) -> None:
        self.rung += 1

    def until(self, what: Callable[[], Any], seconds: float = SOON) -> bool:
        """Turn until something is so; whether it came to be."""
        deadline = time.monotonic() + seconds
        while not what() and time.monotonic() < deadline:
            next(self._loop)
        return bool(what())

    def rings(self, times: int = 1) -> bool:
        """Whether it rings so often and no more."""
        before = self.rung
        self.until(lambda: False)
        return self.rung - before == times


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.hub.close()


@pytest.fixture
def parameters(store: redis.Redis) -> dict[str, Any]:
    kwargs: dict[str, Any] = store.get_connection_kwargs()
    return {name: kwargs[name] for name in ("host", "port", "db")}


@pytest.fixture
def bell(turned: Turned, parameters: dict[str, Any]) -> Iterator[PushNotifier]:
    bell = PushNotifier(parameters, turned.hub, turned.ring)
    yield bell
    bell.close()


def bells(store: redis.Redis) -> list[Any]:
    """The connections that are told of changes."""
    return [client for client in store.client_list() if "t" in client["flags"]]


def looks(store: redis.Redis) -> int:
    """How often workers have looked at their queues."""
    return int(store.info("commandstats")["cmdstat_eval"]["calls"])


def test_it_rings_once_when_something_comes(
    bell: PushNotifier, turned: Turned, store: redis.Redis
) -> None:
    bell.arm(["one", "two"])
    assert turned.rings(0)
    store.lpush("two", "message")
    assert turned.rings()
    store.lpush("two", "message")
    assert turned.rings(0)
    bell.arm(["one", "two"])
    assert turned.rings()  # there is something


def test_it_is_enough_to_listen_once(
    bell: PushNotifier, turned: Turned, store: redis.Redis
) -> None:
    store.config_resetstat()
    for _ in range(10):
        bell.arm(["one", "two"])
        turned.until(lambda: False, SOON / 10)
    assert store.info("commandstats")["cmdstat_exists"]["calls"] == 1


def test_a_change_from_before_it_listened_is_not_taken_for_one_since(
    bell: PushNotifier, turned: Turned, store: redis.Redis
) -> None:
    store.lpush("one", "message")
    bell.arm(["one"])
    assert turned.rings()
    store.delete("one")  # which the server tells too: nobody has heard yet
    bell.arm(["one"])
    assert turned.rings(0)
    store.lpush("one", "message")
    assert turned.rings()


def test_it_listens_to_other_lists_when_it_is_told_to(
    bell: PushNotifier, turned: Turned, store: redis.Redis
) -> None:
    bell.arm(["one"])
    bell.arm(["two"])
    assert turned.rings(0)
    store.lpush("two", "message")
    assert turned.rings()


def test_a_bell_that_is_cut_off_is_silent_and_leaves_nothing(
    bell: PushNotifier, turned: Turned, store: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bell.arm(["one"])
    turned.until(lambda: False)
    readers = len(turned.hub.readers)
    with caplog.at_level(logging.WARNING):
        store.client_kill_filter(_type="normal", skipme=True)
        assert turned.until(lambda: bell.closed)
    assert [record.action for record in caplog.records] == ["bell_lost"]  # type: ignore[attr-defined]
    assert len(turned.hub.readers) == readers - 1
    assert bells(store) == []
    bell.arm(["two"])
    bell.close()
    store.lpush("two", "message")
    assert turned.rings(0)


def test_a_server_without_bells_is_looked_at_now_and_then(
    turned: Turned, store: redis.Redis, parameters: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store.acl_setuser("deaf", True, nopass=True, keys="*", commands=["+@all", "-client|tracking"])
    try:
        watching = FetchTimer(lambda: parameters | {"username": "deaf", "password": "x"}, 0.05)
        watching.hub = turned.hub
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert turned.until(lambda: watching.due)
                watching.on_fetch()
                watching.on_empty(["one"])
                assert not watching.due
        said = [record.action for record in caplog.records]  # type: ignore[attr-defined]
        assert said == ["bell_refused"]
        assert not [one for one in store.client_list() if one["user"] == "deaf"]
    finally:
        store.acl_deluser("deaf")


@pytest.fixture
def watching(turned: Turned, parameters: dict[str, Any]) -> Iterator[FetchTimer]:
    watching = FetchTimer(lambda: parameters, 2 * NEVER)
    watching.hub = turned.hub
    yield watching
    watching.close()


def test_behind_what_came_it_looks_if_there_may_be_more_and_else_when_the_bell_rings(
    watching: FetchTimer, turned: Turned, store: redis.Redis
) -> None:
    assert watching.due
    watching.on_fetch()
    watching.on_messages(["one"], more=True)
    assert watching.due
    assert bells(store) == []
    watching.on_fetch()
    watching.on_messages(["one"], more=False)
    assert not turned.until(lambda: watching.due)
    store.lpush("one", "message")
    assert turned.until(lambda: watching.due)


def test_what_came_while_it_looked_is_heard_of(
    watching: FetchTimer, turned: Turned, store: redis.Redis
) -> None:
    watching.on_fetch()
    store.lpush("one", "message")  # behind what it found
    watching.on_messages(["one"], more=False)
    assert turned.until(lambda: watching.due)


def test_where_no_hub_turns_it_only_looks_now_and_then(
    parameters: dict[str, Any], store: redis.Redis
) -> None:
    watching = FetchTimer(lambda: parameters, NEVER)
    watching.on_fetch()
    watching.on_messages(["one"], more=False)
    watching.on_fetch()
    watching.on_empty(["one"])
    assert not watching.due
    assert bells(store) == []
    watching.close()


def test_who_comes_too_late_looks_again_soon_and_does_not_run_for_what_comes_till_then(
    watching: FetchTimer, turned: Turned, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_timer, "BACKOFF_SECONDS", 3 * SOON)
    watching.on_fetch()
    watching.on_empty(["one"])
    turned.until(lambda: False)
    store.lpush("one", "message")
    assert turned.until(lambda: watching.due)
    watching.on_fetch()
    store.delete("one")  # somebody else takes it
    watching.on_empty(["one"])
    store.lpush("one", "message")
    assert not turned.until(lambda: watching.due)
    assert turned.until(lambda: watching.due, 3 * SOON)
    watching.on_fetch()
    watching.on_empty(["one"])
    assert turned.until(lambda: watching.due)


def test_a_ring_while_somebody_looks_is_not_lost(
    watching: FetchTimer, turned: Turned, store: redis.Redis
) -> None:
    watching.on_fetch()
    watching.on_empty(["one"])
    turned.until(lambda: False)
    watching.on_fetch()
    store.lpush("one", "message")
    assert turned.until(lambda: watching.due)
    watching.on_empty(["one"])  # what was looked at before
    assert watching.due


def test_a_lost_bell_is_hung_anew_after_a_pause(
    watching: FetchTimer, turned: Turned, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_timer, "RECONNECT_SECONDS", SOON)
    watching.on_fetch()
    watching.on_empty(["one"])
    turned.until(lambda: False)
    store.client_kill_filter(_type="normal", skipme=True)
    turned.until(lambda: False)
    watching.on_fetch()
    watching.on_empty(["one"])
    turned.until(lambda: False)
    store.lpush("one", "message")
    assert turned.until(lambda: watching.due)
    assert len(bells(store)) == 1


def test_a_worker_takes_what_comes_though_it_never_looks_by_itself(
    start_worker: StartWorker, producer: Producer, store: redis.Redis, valkey_url: str
) -> None:
    with start_worker("rung", env={"FLEET_TEST_IDLE_DELAY": str(NEVER)}):
        eventually(lambda: len(bells(store)) == 1)
        for number in range(20):
            result = producer.send("add", number, 1, priority=number % 10)
            assert result.get(timeout=10) == number + 1
        eventually(lambda: not store.hlen("unacked"))  # idle, as the connections are cut
        [first] = bells(store)
        for one in store.client_list(_type="normal"):
            if one["id"] != first["id"]:  # the worker connects anew, with a new bell
                store.client_kill_filter(_id=one["id"], skipme=True)
        eventually(lambda: [one for one in bells(store) if one["id"] != first["id"]])
        eventually(lambda: len(bells(store)) == 1)
        another = Producer(valkey_url)  # that one's subscription to results was cut off too
        with another.app:
            assert another.send("add", 1, 1).get(timeout=10) == 2
            before = looks(store)
            for number in range(20):
                assert another.send("add", number, 1).get(timeout=10) == number + 1
            assert looks(store) - before < 25  # one for each
        before = looks(store)
        time.sleep(1)
        assert looks(store) - before < 5
    eventually(lambda: bells(store) == [])


def test_a_worker_takes_all_that_waits_though_the_bell_rings_for_none_of_it(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    waiting = [producer.send("add", number, 1) for number in range(20)]
    with start_worker("full", concurrency=1, env={"FLEET_TEST_IDLE_DELAY": str(NEVER)}):
        assert [one.get(timeout=10) for one in waiting] == [*range(1, 21)]
