"""Leases and dead letters without a server."""

import base64
import json
import ssl
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import InvalidTaskError, NotRegistered
from kombu import Connection

from tests.support.clock import Clock
from workers.runtime import transport
from workers.runtime.leases import Leases, Terms, Undeliverable, task_request
from workers.runtime.scripts import EXPIRED, RELEASE, RENEW
from workers.runtime.transport import Channel, QoS, Transport, leased

TERMS = Terms("unacked", "index", "dead", visibility_timeout=30, max_deliveries=3)


class FakeRedis:
    """Scripts and pipelines that record their calls, and fail while `away`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.away = False
        self.replies: dict[str, Any] = {"renew": [], "expired": [], "release": 1}

    def execute_command(self, command: str, sha: str, count: int, *arguments: Any) -> Any:
        name = next(script.name for script in (EXPIRED, RELEASE, RENEW) if script.sha == sha)
        self.called(name, ([*arguments[:count]], [*arguments[count:]]))
        return self.replies[name]

    def called(self, name: str, arguments: Any) -> None:
        if self.away:
            raise redis.ConnectionError("away")
        self.calls.append((name, arguments))

    def pipeline(self, transaction: bool) -> "FakeRedis":
        return self

    def __enter__(self) -> "FakeRedis":
        return self

    def __exit__(self, *_: object) -> None: ...

    def hdel(self, key: str, *tags: str) -> None:
        self.called("ack", tags)

    def zrem(self, key: str, *tags: str) -> None: ...

    def execute(self) -> None: ...

    def named(self, name: str) -> list[Any]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def leases(clock: Clock, server: FakeRedis) -> Leases:
    leases = Leases(clock)
    leases.use(server, TERMS)  # type: ignore[arg-type]
    return leases


def entry(**properties: Any) -> bytes:
    message = {"headers": {"id": "task"}, "properties": properties}
    return json.dumps([message, "", "queue:1"]).encode()


def test_an_ack_while_redis_is_away_is_sent_at_a_later_beat(
    leases: Leases, server: FakeRedis
) -> None:
    leases.hold("tag")
    server.away = True
    leases.ack("tag")
    assert len(leases) == 1, "Redis has not heard of it yet, so its place is not free"
    server.away = False
    leases.beat()
    leases.beat()
    assert server.named("ack") == [("tag",)]
    assert len(leases) == 0


def test_what_is_held_is_counted_by_tenant_as_long_as_redis_counts_it(
    leases: Leases, server: FakeRedis
) -> None:
    leases.hold("one", "two", tenant="a")
    leases.hold("three")
    server.away = True
    leases.ack("one")
    assert leases.by_tenant() == {"a": 2, "": 1}
    server.away = False
    leases.beat()
    assert leases.by_tenant() == {"a": 1, "": 1}


def test_a_beat_renews_what_is_held(leases: Leases, server: FakeRedis) -> None:
    leases.hold("one")
    leases.hold("two")
    leases.ack("one")
    leases.beat()
    assert server.named("renew") == [(["index"], ["two"])]


def test_a_lost_lease_is_held_no_more(leases: Leases, server: FakeRedis) -> None:
    leases.hold("mine")
    leases.hold("lost")
    server.replies["renew"] = [b"lost", b"acknowledged meanwhile"]
    leases.beat()
    assert len(leases) == 1


def test_no_sweep_for_one_visibility_timeout_after_an_outage(
    leases: Leases, server: FakeRedis, clock: Clock
) -> None:
    leases.sweep()
    assert len(server.named("expired")) == 1
    clock.now += 20  # no beat came through for that long
    leases.sweep()
    leases.beat()
    leases.sweep()
    for _ in range(5):
        clock.now += 5
        leases.beat()
        leases.sweep()
    assert len(server.named("expired")) == 1
    clock.now += 5
    leases.beat()
    leases.sweep()
    assert len(server.named("expired")) == 2


def test_a_sweep_puts_the_message_where_it_came_from_and_counts(
    leases: Leases, server: FakeRedis
) -> None:
    server.replies["expired"] = [b"tag", entry(fleet_deliveries=1)]
    leases.sweep()
    ((keys, (tag, text, end, idle)),) = server.named("release")
    assert (keys, tag, end, idle) == (["unacked", "index", "queue:1"], "tag", "next", 30)
    properties = json.loads(text)["properties"]
    assert properties == {"fleet_deliveries": 2, "delivery_info": {"redelivered": True}}


def test_the_last_delivery_makes_a_dead_letter_and_tells_the_hook(
    leases: Leases, server: FakeRedis
) -> None:
    told: list[Any] = []
    leases.on_dead_letter = lambda *args: told.append(args)
    server.replies["expired"] = [b"tag", entry(fleet_deliveries=2)]
    leases.sweep()
    ((keys, (_, record, _, _)),) = server.named("release")
    assert keys == ["unacked", "index", "dead"]
    assert json.loads(record)["kind"] == "max_deliveries"
    ((letter, request, error),) = told
    assert (letter.queue, request.id, str(error)) == (
        "queue:1",
        "task",
        "Delivered 3 times without an end",
    )


def test_a_dead_letter_that_another_worker_made_is_not_told_again(
    leases: Leases, server: FakeRedis
) -> None:
    told: list[Any] = []
    leases.on_dead_letter = lambda *args: told.append(args)
    server.replies |= {"expired": [b"tag", b"[nonsense"], "release": 0}
    leases.sweep()
    assert told == []


def test_the_request_of_a_message_has_the_callbacks_of_its_body() -> None:
    body = base64.b64encode(json.dumps([[], {}, {"errbacks": ["sig"], "chord": None}]).encode())
    request = task_request({"headers": {"id": "task", "group": "g"}, "body": body.decode()})
    assert request is not None
    assert (request.id, request.group) == ("task", "g")
    assert vars(request)["errbacks"] == ["sig"]


@pytest.mark.parametrize("body", ["*", "bm9uc2Vuc2U=", "W10=", None, 1, ["list"]])
def test_a_request_without_a_readable_body_still_has_its_id(body: object) -> None:
    request = task_request({"properties": {"correlation_id": "task"}, "body": body})
    assert request is not None
    assert request.id == "task"


@pytest.mark.parametrize("message", [None, 1, [], {}, {"headers": 1, "properties": []}])
def test_a_message_without_an_id_has_no_request(message: object) -> None:
    assert task_request(message) is None


def test_a_failure_is_one_that_every_producer_can_decode() -> None:
    unknown = NotRegistered("task")
    assert Undeliverable("unknown_task", unknown).failure() is unknown
    failure = Undeliverable("undecodable", ValueError("why")).failure()
    assert (type(failure), str(failure)) == (InvalidTaskError, "undecodable: why")


@pytest.mark.parametrize(
    ("url", "worker_url"),
    [
        ("redis://host/0", "fleetredis://host/0"),
        ("rediss://host/0", "fleetrediss://host/0"),
        ("sentinel://host", "sentinel://host"),
    ],
)
def test_workers_read_over_leases(url: str, worker_url: str) -> None:
    assert leased(url) == worker_url


def test_tls_is_verified_unless_told_otherwise() -> None:
    def options(scheme: str, **options: Any) -> Any:
        with Connection(f"{scheme}://host", **options) as connection:
            assert isinstance(connection.transport, Transport)
            return connection.ssl

    required = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert not options("fleetredis")
    assert options("fleetrediss") == required
    assert options("fleetrediss", ssl=True) == required
    assert options("fleetrediss", ssl={"ssl_ca_certs": "/ca.pem"}) == {"ssl_ca_certs": "/ca.pem"}


def test_a_channel_that_closes_gives_nothing_back() -> None:
    qos = QoS(channel=None)  # type: ignore[arg-type]
    qos.append(message=object(), delivery_tag="tag")
    qos.restore_unacked_once()


def test_an_ack_beside_another_does_not_wait_and_both_are_sent(
    leases: Leases, server: FakeRedis
) -> None:
    leases.hold("one", "two")

    def beside() -> None:
        server.execute = FakeRedis.execute.__get__(server)  # type: ignore[method-assign]
        second = threading.Thread(target=leases.ack, args=("two",))
        second.start()
        second.join(5)
        assert not second.is_alive()
        assert server.named("ack") == [("one",)]

    server.execute = beside  # type: ignore[method-assign]
    leases.ack("one")
    assert server.named("ack") == [("one",), ("two",)]


def test_acks_together_are_sent_at_once(leases: Leases, server: FakeRedis) -> None:
    leases.hold("one", "two")
    with leases.together():
        leases.ack("one")
        leases.ack("two")
        assert server.named("ack") == []
    [tags] = server.named("ack")
    assert sorted(tags) == ["one", "two"]
    assert len(leases) == 0


def test_what_was_fetched_and_not_handed_out_is_given_back_and_held_no_more(
    leases: Leases, server: FakeRedis
) -> None:
    given_back: list[str] = []
    server.hget = lambda key, tag: given_back.append(tag)  # type: ignore[attr-defined]
    leases.hold("one", "two", "three")
    leases.unread("two", "three")
    assert len(leases) == 1
    leases.beat()
    assert sorted(given_back) == ["three", "two"]


def test_what_follows_an_interrupted_delivery_goes_back_and_the_rest_stays(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver(tag: str, source: str, text: str) -> None:
        if tag == "two":
            raise SystemExit

    channel: Any = SimpleNamespace(
        _sources={"list": "queue", "replies": "unleased"}, _unleased={"unleased"}, _deliver=deliver
    )
    monkeypatch.setattr(transport, "LEASES", leases)
    with pytest.raises(SystemExit):
        Channel._hand_out(
            channel,
            [
                ("none", "replies", "", ""),
                *((tag, "list", "t", "") for tag in ("one", "two", "three")),
            ],
        )
    assert (list(leases._held), leases._unread) == (["one", "two"], {"three"})
