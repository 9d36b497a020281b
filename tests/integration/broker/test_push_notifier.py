"""Push notifications and the fetch timer: on a real server, in kombu's hub."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from primarch_fleet.queues import turns_list
from tests.support.clock import Clock
from tests.support.turning_hub import TurningHub
from tests.support.workers import Producer, StartWorker, eventually
from workers.runtime.fetching import fetch_timer
from workers.runtime.fetching.fetch_timer import FetchTimer
from workers.runtime.fetching.push_notifier import PushNotifier
from workers.runtime.leases.leases import LEASES_KEY

#: Seconds between two fetches of a worker that does not poll while a test lasts.
NEVER = 600


@pytest.fixture
def hub(store: redis.Redis) -> Iterator[TurningHub]:
    hub = TurningHub(store)
    yield hub
    hub.hub.close()


@pytest.fixture
def parameters(store: redis.Redis) -> dict[str, Any]:
    kwargs: dict[str, Any] = store.get_connection_kwargs()
    return {name: kwargs[name] for name in ("host", "port", "db")}


@pytest.fixture
def notifier(hub: TurningHub, parameters: dict[str, Any]) -> Iterator[PushNotifier]:
    notifier = PushNotifier(parameters, hub.hub, hub.on_push)
    yield notifier
    notifier.close()


def tracking_connections(store: redis.Redis) -> list[Any]:
    return [client for client in store.client_list() if "t" in client["flags"]]


def fetch_count(store: redis.Redis) -> int:
    """How often workers have fetched: each fetch, and nothing else here, reads once how many
    placeholders the queue has."""
    return calls(store, "hget")


def calls(store: redis.Redis, command: str) -> int:
    return int(store.info("commandstats")[f"cmdstat_{command}"]["calls"])


def test_one_push_notifies_once_until_the_notifier_is_armed_again(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    notifier.arm(["one", "two"])
    assert hub.new_pushes() == 0
    store.lpush("two", "message")
    assert hub.new_pushes() == 1
    store.lpush("two", "message")
    assert hub.new_pushes() == 0
    notifier.arm(["one", "two"])
    assert hub.new_pushes() == 1  # the list has a message


def test_arming_again_for_the_same_lists_sends_nothing(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    store.config_resetstat()
    for _ in range(10):
        notifier.arm(["one", "two"])
        hub.settle()
    assert store.info("commandstats")["cmdstat_exists"]["calls"] == 1


def test_a_change_from_before_the_notifier_was_armed_does_not_notify(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    store.lpush("one", "message")
    notifier.arm(["one"])
    assert hub.new_pushes() == 1
    store.delete("one")  # the server sends this change too; the hub has not read it yet
    notifier.arm(["one"])
    assert hub.new_pushes() == 0
    store.lpush("one", "message")
    assert hub.new_pushes() == 1


def test_arming_for_other_lists_replaces_the_lists(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    notifier.arm(["one"])
    notifier.arm(["two"])
    assert hub.new_pushes() == 0
    store.lpush("two", "message")
    assert hub.new_pushes() == 1


def test_a_notifier_whose_connection_is_cut_closes_and_leaves_nothing(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    notifier.arm(["one"])
    hub.settle()
    readers = len(hub.hub.readers)
    with caplog.at_level(logging.WARNING):
        store.client_kill_filter(_type="normal", skipme=True)
        assert hub.until(lambda: notifier.closed)
    actions = [record.action for record in caplog.records]  # type: ignore[attr-defined]
    assert actions == ["push_notifications_lost"]
    assert len(hub.hub.readers) == readers - 1
    assert tracking_connections(store) == []
    notifier.arm(["two"])
    notifier.close()
    store.lpush("two", "message")
    assert hub.new_pushes() == 0


def test_a_check_finds_nothing_while_notifications_work(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    notifier.arm(["one"])
    hub.settle()
    store.lpush("one", "message")  # its notification comes before the reply to the check
    notifier.check()
    assert hub.new_pushes() == 1
    assert not notifier.closed


def test_a_check_while_the_reply_to_arming_is_on_its_way_finds_nothing(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    for name in ("one", "two"):
        notifier.arm([name])
        notifier.check()  # the hub has not read the reply yet
        assert hub.new_pushes() == 0
    assert not notifier.closed
    store.lpush("two", "message")
    assert hub.new_pushes() == 1


def test_a_check_that_finds_a_message_without_its_notification_closes_the_notifier_for_good(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    notifier.arm(["one"])
    hub.settle()
    connection = notifier._connection
    connection.send_command("CLIENT", "TRACKING", "OFF")  # as a proxy that forwards no push
    connection.read_response()
    store.lpush("one", "message")
    assert hub.new_pushes() == 0
    notifier.check()
    hub.settle()
    assert notifier.closed
    assert notifier.unreliable


def test_a_check_without_a_reply_to_the_one_before_closes_the_notifier(
    notifier: PushNotifier, hub: TurningHub, store: redis.Redis
) -> None:
    notifier.arm(["one"])
    hub.settle()
    notifier.check()
    notifier.check()  # the hub has read no reply
    assert notifier.closed
    assert not notifier.unreliable


def test_a_server_without_tracking_is_polled_every_idle_delay(
    hub: TurningHub,
    store: redis.Redis,
    parameters: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.acl_setuser(
        "no_tracking", True, nopass=True, keys="*", commands=["+@all", "-client|tracking"]
    )
    try:
        login = {"username": "no_tracking", "password": "x"}
        clock = Clock()
        timer = FetchTimer(lambda: parameters | login, 0.05, clock=clock)
        timer.hub = hub.hub
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert timer.due
                timer.on_fetch()
                timer.on_empty(["one"])
                assert not timer.due
                clock.now += 0.05
        actions = [record.action for record in caplog.records]  # type: ignore[attr-defined]
        assert actions == ["push_notifications_refused"]
        users = [client["user"] for client in store.client_list()]
        assert "no_tracking" not in users
    finally:
        store.acl_deluser("no_tracking")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(hub: TurningHub, parameters: dict[str, Any], clock: Clock) -> Iterator[FetchTimer]:
    timer = FetchTimer(lambda: parameters, NEVER, clock=clock)
    timer.hub = hub.hub
    yield timer
    timer.close()


def test_after_messages_the_next_fetch_is_due_at_once_if_there_may_be_more_else_after_a_push(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis
) -> None:
    assert timer.due
    timer.on_fetch()
    timer.on_messages(["one"], more=True)
    assert timer.due
    assert tracking_connections(store) == []
    timer.on_fetch()
    timer.on_messages(["one"], more=False)
    hub.settle()
    assert not timer.due
    store.lpush("one", "message")
    hub.settle()
    assert timer.due


def test_a_message_that_is_put_back_makes_a_fetch_due(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis
) -> None:
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    assert not timer.due
    store.lpush(turns_list("one"), "tenant")
    hub.settle()
    assert timer.due


def test_a_worker_polls_while_messages_stay_and_not_while_notifications_tell_it(
    hub: TurningHub, parameters: dict[str, Any], store: redis.Redis, clock: Clock
) -> None:
    store.lpush(turns_list("one"), "tenant")
    timer = FetchTimer(lambda: parameters, 0.02, 600, clock)
    timer.hub = hub.hub
    timer.on_fetch()
    timer.on_empty(["one"], stay=True)
    hub.settle()
    assert not timer.due
    clock.now += 0.02
    assert timer.due
    timer.on_fetch()
    store.delete(turns_list("one"))
    timer.on_empty(["one"])
    hub.settle()
    clock.now += 599
    assert not timer.due
    clock.now += 1
    assert timer.due
    hub.settle()
    store.client_kill_filter(_type="normal", skipme=True)
    timer.on_fetch()
    timer.on_empty(["one"])
    clock.now += 0.02
    assert hub.until(lambda: timer.due), "without notifications the worker polls"
    timer.close()


def test_a_message_that_is_pushed_during_a_fetch_makes_the_next_fetch_due(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis
) -> None:
    timer.on_fetch()
    store.lpush("one", "message")  # after the messages that the fetch takes
    timer.on_messages(["one"], more=False)
    hub.settle()
    assert timer.due


def test_without_a_hub_only_the_idle_delay_makes_a_fetch_due(
    parameters: dict[str, Any], store: redis.Redis, clock: Clock
) -> None:
    timer = FetchTimer(lambda: parameters, NEVER, clock=clock)
    timer.on_fetch()
    timer.on_messages(["one"], more=False)
    timer.on_fetch()
    timer.on_empty(["one"])
    assert not timer.due
    assert tracking_connections(store) == []
    clock.now += NEVER
    assert timer.due
    timer.close()


def test_a_push_whose_message_another_worker_took_is_followed_by_a_backoff(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis, clock: Clock
) -> None:
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    store.lpush("one", "message")
    hub.settle()
    assert timer.due
    timer.on_fetch()
    store.delete("one")  # another worker takes it
    timers = len(hub.hub.timer.queue)
    timer.on_empty(["one"])
    assert len(hub.hub.timer.queue) == timers + 1, "the hub wakes when the backoff is over"
    store.lpush("one", "message")
    hub.settle()
    assert not timer.due
    clock.now += fetch_timer.BACKOFF_SECONDS
    assert timer.due
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    assert timer.due  # armed again: the list has a message


def test_a_push_during_a_fetch_is_not_lost_whatever_the_fetch_finds(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis
) -> None:
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    timer.on_fetch()
    store.lpush("one", "message")
    hub.settle()
    assert timer.due
    timer.on_messages(["one"], more=False)  # the fetch had run before the push
    assert timer.due
    timer.on_empty(["one"])
    assert timer.due


def test_a_push_during_a_fetch_that_follows_a_push_does_not_arm_the_notifier(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis, clock: Clock
) -> None:
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    timer.on_fetch()
    store.lpush("one", "message")
    hub.settle()
    timer.on_messages(["one"], more=False)  # arms; the list has a message
    timer.on_fetch()  # follows the first push
    hub.settle()
    store.delete("one")  # another worker takes it
    timer.on_empty(["one"])
    assert timer.due  # for the second push
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    store.lpush("one", "message")
    hub.settle()
    assert not timer.due, "it fetches for every push"
    clock.now += fetch_timer.BACKOFF_SECONDS
    assert timer.due


def test_lost_push_notifications_are_set_up_again_after_a_pause(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis, clock: Clock
) -> None:
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    store.client_kill_filter(_type="normal", skipme=True)
    assert hub.until(lambda: not tracking_connections(store))
    hub.settle()
    timer.on_fetch()
    timer.on_empty(["one"])
    assert tracking_connections(store) == []
    clock.now += fetch_timer.RECONNECT_SECONDS
    timer.on_fetch()
    timer.on_empty(["one"])
    hub.settle()
    store.lpush("one", "message")
    hub.settle()
    assert timer.due
    assert len(tracking_connections(store)) == 1


def test_a_worker_that_never_polls_takes_every_message_with_one_fetch(
    start_worker: StartWorker, producer: Producer, store: redis.Redis, valkey_url: str
) -> None:
    with start_worker("notified", env={"FLEET_TEST_IDLE_DELAY": str(NEVER)}):
        eventually(lambda: len(tracking_connections(store)) == 1)
        for number in range(20):
            result = producer.send("add", number, 1, priority=number % 10)
            assert result.get(timeout=10) == number + 1
        eventually(lambda: not store.hlen(LEASES_KEY))  # idle when the connections are cut
        [first] = tracking_connections(store)
        for client in store.client_list(_type="normal"):
            if client["id"] != first["id"]:  # the worker reconnects, with a new notifier
                store.client_kill_filter(_id=client["id"], skipme=True)
        eventually(
            lambda: [
                client for client in tracking_connections(store) if client["id"] != first["id"]
            ]
        )
        eventually(lambda: len(tracking_connections(store)) == 1)
        another = Producer(valkey_url)  # the first one's subscription to results was cut too
        with another.app:
            assert another.send("add", 1, 1).get(timeout=10) == 2
            before = fetch_count(store)
            for number in range(20):
                assert another.send("add", number, 1).get(timeout=10) == number + 1
            assert fetch_count(store) - before < 25  # one for each
        before, sweeps = fetch_count(store), calls(store, "hmget")
        eventually(lambda: calls(store, "hmget") >= sweeps + 3)  # about a second of a live worker
        assert fetch_count(store) - before < 5
    eventually(lambda: tracking_connections(store) == [])


def test_a_worker_that_never_polls_takes_all_messages_that_waited_before_it_started(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("add", number, 1) for number in range(20)]
    with start_worker("full", concurrency=1, env={"FLEET_TEST_IDLE_DELAY": str(NEVER)}):
        assert [result.get(timeout=10) for result in results] == [*range(1, 21)]
