"""Leases, dead letters and the transport, without a server."""

import base64
import json
import ssl
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import InvalidTaskError, NotRegistered
from kombu import Connection

from workers.runtime.dead_letters import LETTER_KEYS, Undeliverable, task_request
from workers.runtime.fetching import fetch_command, transport
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.fetch_command import Affinity, Fetched
from workers.runtime.fetching.prefix_affinity import AffinityLimits
from workers.runtime.fetching.transport import Channel, QoS, Transport, _Delivery, leased_url
from workers.runtime.leases.leases import (
    LEASE_KEYS,
    MAX_RENEWED_AT_ONCE,
    RENEWALS_KEY,
    Leases,
    LeaseSettings,
)
from workers.runtime.scripts import DEAD_LETTER, EXPIRED, RELEASE, RENEW

SCRIPTS = (DEAD_LETTER, EXPIRED, RELEASE, RENEW)
SETTINGS = LeaseSettings(visibility_timeout=30, max_deliveries=3)


class FakeRedis:
    """Records the scripts that run, and fails while it is unreachable."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.unreachable = False
        self.replies: dict[str, Any] = {"renew": [], "expired": [], "release": 1}
        self.replies["dead_letter"] = 1

    def execute_command(self, command: str, sha: str, count: int, *arguments: Any) -> Any:
        names = {script.sha: script.name for script in SCRIPTS}
        if sha not in names:  # each process has its own acknowledging script
            self.record("ack", arguments[count + 1 :: 2])
            self.after_ack()
            return []
        name = names[sha]
        self.record(name, ([*arguments[:count]], [*arguments[count:]]))
        reply = self.replies[name]
        if name == "expired":  # a lease that is put back is no more
            self.replies[name] = []
        return reply

    def record(self, name: str, arguments: Any) -> None:
        if self.unreachable:
            raise redis.ConnectionError("unreachable")
        self.calls.append((name, arguments))

    def after_ack(self) -> None:
        """Called before the answer to an acknowledgement."""

    def calls_of(self, name: str) -> list[Any]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def server() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def leases(server: FakeRedis) -> Leases:
    leases = Leases()
    leases.connect(server, SETTINGS)  # type: ignore[arg-type]
    return leases


def entry(**properties: Any) -> bytes:
    message = {"headers": {"id": "task"}, "properties": properties}
    return json.dumps([message, "", "queue:1"]).encode()


def test_an_ack_while_redis_is_unreachable_is_sent_with_a_later_renewal(
    leases: Leases, server: FakeRedis
) -> None:
    leases.track("tag")
    server.unreachable = True
    leases.ack("tag")
    assert len(leases) == 1, "the ack is not in Redis yet, so the slot is not free"
    server.unreachable = False
    leases.renew()
    leases.renew()
    assert server.calls_of("ack") == [("tag",)]
    assert len(leases) == 0


def test_leases_count_for_their_tenant_until_redis_has_the_ack(
    leases: Leases, server: FakeRedis
) -> None:
    leases.track("one", "two", tenant="a")
    leases.track("three")
    server.unreachable = True
    leases.ack("one")
    assert leases.count_by_tenant() == {"a": 2, "": 1}
    server.unreachable = False
    leases.renew()
    assert leases.count_by_tenant() == {"a": 1, "": 1}


def test_a_renewal_renews_all_tracked_leases(leases: Leases, server: FakeRedis) -> None:
    leases.track("one")
    leases.track("two")
    leases.ack("one")
    leases.renew()
    assert server.calls_of("renew") == [([RENEWALS_KEY], ["two"])]


def test_a_renewal_of_many_leases_takes_several_commands_and_of_none_takes_none(
    leases: Leases, server: FakeRedis
) -> None:
    leases.renew()
    leases.track(*map(str, range(MAX_RENEWED_AT_ONCE + 1)))
    leases.renew()
    assert [len(tags) for _, tags in server.calls_of("renew")] == [MAX_RENEWED_AT_ONCE, 1]


def test_a_lost_lease_is_not_tracked_any_more(leases: Leases, server: FakeRedis) -> None:
    leases.track("mine")
    leases.track("lost")
    server.replies["renew"] = [b"lost", b"acknowledged meanwhile"]
    leases.renew()
    assert len(leases) == 1


def test_a_sweep_puts_a_message_back_in_its_queue_and_counts_the_delivery(
    leases: Leases, server: FakeRedis
) -> None:
    server.replies["expired"] = [b"tag", entry(fleet_deliveries=1)]
    leases.sweep()
    ((keys, (tag, text, place, unrenewed_seconds)),) = server.calls_of("release")
    assert keys == [*LEASE_KEYS, "queue:1"]
    assert (tag, place, unrenewed_seconds) == ("tag", "next", 30)
    properties = json.loads(text)["properties"]
    assert properties == {"fleet_deliveries": 2, "delivery_info": {"redelivered": True}}


def test_after_the_last_delivery_a_message_becomes_a_dead_letter_and_the_hook_is_called(
    leases: Leases, server: FakeRedis
) -> None:
    calls: list[Any] = []
    leases.on_dead_letter = lambda *args: calls.append(args)
    server.replies["expired"] = [b"tag", entry(fleet_deliveries=2)]
    leases.sweep()
    ((keys, (stored, *_)),) = server.calls_of("dead_letter")
    assert keys == [*LETTER_KEYS, *LEASE_KEYS]
    assert json.loads(stored)["kind"] == "max_deliveries"
    assert json.loads(stored)["queue"] == "queue:1"
    ((request, error),) = calls
    assert (request.id, str(error)) == ("task", "Delivered 3 times and never acknowledged")


@pytest.mark.parametrize(
    ("text", "queue", "message"),
    [
        (b"[nonsense", "", "[nonsense"),
        (b"[1]", "", "[1]"),
        (b'[{"properties": 1},"","queue"]', "queue", '{"properties": 1}'),
        (b'[nonsense,"","a\\u0006 \\"b\\""]', 'a\x06 "b"', "nonsense"),
        (b"[" + b"[" * 9999 + b"]" * 9999 + b',"","queue"]', "queue", "[" * 9999 + "]" * 9999),
        (b'[{"properties": {"fleet_deliveries": -9}},"","q"]', "q", None),
        (b'[{"properties": {"fleet_deliveries": NaN}},"","q"]', "q", None),
    ],
)
def test_a_lease_whose_message_cannot_be_decoded_becomes_a_dead_letter(
    leases: Leases, server: FakeRedis, text: bytes, queue: str, message: str | None
) -> None:
    leases.on_dead_letter = lambda *_: None
    server.replies["expired"] = [b"tag", text]
    leases.sweep()
    ((keys, (stored, *_)),) = server.calls_of("dead_letter")
    assert keys == [*LETTER_KEYS, *LEASE_KEYS]
    letter = json.loads(stored)
    assert (letter["kind"], letter["queue"]) == ("undecodable", queue)
    assert letter["message"] == (message or text.decode()[1 : -len(',"","q"]')])


def test_the_hook_is_not_called_for_a_dead_letter_that_another_worker_stored(
    leases: Leases, server: FakeRedis
) -> None:
    calls: list[Any] = []
    leases.on_dead_letter = lambda *args: calls.append(args)
    server.replies |= {"expired": [b"tag", entry(fleet_deliveries=2)], "dead_letter": 0}
    leases.sweep()
    assert calls == []


def test_the_request_of_a_message_has_the_callbacks_of_its_body() -> None:
    body = base64.b64encode(json.dumps([[], {}, {"errbacks": ["sig"], "chord": None}]).encode())
    message = {"headers": {"id": "task", "group": "g"}, "body": body.decode()}
    request = task_request(json.dumps(message))
    assert request is not None
    assert (request.id, request.group) == ("task", "g")
    assert vars(request)["errbacks"] == ["sig"]


@pytest.mark.parametrize("body", ["*", "bm9uc2Vuc2U=", "W10=", None, 1, ["list"]])
def test_a_request_without_a_readable_body_has_its_id(body: object) -> None:
    message = {"properties": {"correlation_id": "task"}, "body": body}
    request = task_request(json.dumps(message))
    assert request is not None
    assert request.id == "task"


@pytest.mark.parametrize(
    "text", ["not json", "null", "1", "[]", "{}", '{"headers": 1, "properties": []}']
)
def test_a_message_without_an_id_has_no_request(text: str) -> None:
    assert task_request(text) is None


def test_every_producer_can_decode_the_error_of_a_dead_letter() -> None:
    unknown = NotRegistered("task")
    assert Undeliverable("unknown_task", unknown).task_error() is unknown
    error = Undeliverable("undecodable", ValueError("why")).task_error()
    assert (type(error), str(error)) == (InvalidTaskError, "undecodable: why")


@pytest.mark.parametrize(
    ("url", "worker_url"),
    [
        ("redis://host/0", "fleetredis://host/0"),
        ("rediss://host/0", "fleetrediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true"),
    ],
)
def test_workers_read_from_redis_with_leases(url: str, worker_url: str) -> None:
    assert leased_url(url) == worker_url


def test_tls_is_verified_unless_the_options_say_otherwise() -> None:
    def options(scheme: str, **options: Any) -> Any:
        with Connection(f"{scheme}://host", **options) as connection:
            assert isinstance(connection.transport, Transport)
            return connection.ssl

    required = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert not options("fleetredis")
    assert options("fleetrediss") == required
    assert options("fleetrediss", ssl=True) == required
    assert options("fleetrediss", ssl={"ssl_ca_certs": "/ca.pem"}) == {"ssl_ca_certs": "/ca.pem"}


def test_a_channel_that_closes_gives_no_message_back() -> None:
    qos = QoS(channel=None)  # type: ignore[arg-type]
    qos.append(message=object(), delivery_tag="tag")
    qos.restore_unacked_once()


def test_an_ack_during_another_ones_sending_does_not_wait_and_both_are_sent(
    leases: Leases, server: FakeRedis
) -> None:
    leases.track("one", "two")

    def ack_meanwhile() -> None:
        server.after_ack = FakeRedis.after_ack.__get__(server)  # type: ignore[method-assign]
        second = threading.Thread(target=leases.ack, args=("two",))
        second.start()
        second.join(5)
        assert not second.is_alive()
        assert server.calls_of("ack") == [("one",)]

    server.after_ack = ack_meanwhile  # type: ignore[method-assign]
    leases.ack("one")
    assert server.calls_of("ack") == [("one",), ("two",)]


def test_batched_acks_are_sent_together(leases: Leases, server: FakeRedis) -> None:
    leases.track("one", "two")
    with leases.batched_acks():
        leases.ack("one")
        leases.ack("two")
        assert server.calls_of("ack") == []
    [tags] = server.calls_of("ack")
    assert sorted(tags) == ["one", "two"]
    assert len(leases) == 0


def test_abandoned_leases_are_given_back_and_not_tracked_any_more(
    leases: Leases, server: FakeRedis
) -> None:
    given_back: list[str] = []
    server.hget = lambda key, tag: given_back.append(tag)  # type: ignore[attr-defined]
    leases.track("one", "two", "three")
    leases.abandon("two", "three")
    assert len(leases) == 1
    leases.renew()
    assert given_back == ["three", "two"], "the message that was leased first must be the next"


def test_leases_that_nothing_needs_are_given_back_but_for_those_whose_ack_is_under_way(
    leases: Leases, server: FakeRedis
) -> None:
    given_back: list[str] = []
    server.hget = lambda key, tag: given_back.append(tag)  # type: ignore[attr-defined]
    leases.track("one", "two", "three", "four")
    server.unreachable = True
    leases.ack("three")
    server.unreachable = False
    leases.keep_only({"two"})
    assert [leases.holds(tag) for tag in ("one", "two")] == [False, True]
    leases.renew()
    assert given_back == ["four", "one"]
    assert server.calls_of("ack") == [("three",)]


def test_renewals_go_on_while_many_messages_are_given_back(
    leases: Leases, server: FakeRedis
) -> None:
    given_back: list[str] = []
    server.hget = lambda key, tag: given_back.append(tag)  # type: ignore[attr-defined]
    leases.track("kept", *map(str, range(MAX_RENEWED_AT_ONCE + 1)))
    leases.keep_only({"kept"})
    leases.renew()
    assert len(given_back) == MAX_RENEWED_AT_ONCE
    assert server.calls_of("renew")[-1][1] == ["kept"]
    leases.renew()
    assert len(given_back) == MAX_RENEWED_AT_ONCE + 1


@pytest.mark.parametrize("requeue", [True, False])
def test_a_rejected_message_is_requeued_or_acknowledged(
    leases: Leases, server: FakeRedis, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    monkeypatch.setattr(transport, "LEASES", leases)
    server.hget = lambda key, tag: entry()  # type: ignore[attr-defined]
    leases.track("tag")
    QoS(channel=None).reject("tag", requeue)  # type: ignore[arg-type]
    assert len(server.calls_of("release")) == requeue
    assert len(server.calls_of("ack")) == (not requeue)
    assert len(leases) == 0


def test_messages_after_an_interrupted_delivery_are_given_back_and_the_others_kept(
    leases: Leases, server: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver(delivery: Any) -> None:
        if delivery.tag == "two":
            raise SystemExit

    channel: Any = SimpleNamespace(_unleased_queues={"unleased"}, _deliver=deliver)
    monkeypatch.setattr(transport, "LEASES", leases)
    given_back: list[str] = []
    server.hget = lambda key, tag: given_back.append(tag)  # type: ignore[attr-defined]
    fetched = Fetched("list", "t", "text", "id", False, None)
    deliveries = [
        _Delivery(tag, queue, fetched)
        for tag, queue in (
            ("none", "unleased"),
            ("one", "queue"),
            ("two", "queue"),
            ("three", "queue"),
        )
    ]
    with pytest.raises(SystemExit):
        Channel._deliver_all(channel, deliveries, 0.0)
    leases.renew()
    assert server.calls_of("renew") == [([RENEWALS_KEY], ["one", "two"])]
    assert given_back == ["three"]


def test_a_lease_is_certain_for_half_a_visibility_timeout_after_its_last_confirmation(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_started", True)
    now, timeout = time.monotonic(), SETTINGS.visibility_timeout
    leases.track("young", fetched_at=now)
    leases.track("old", fetched_at=now - timeout / 2)  # the process was frozen before the reply
    assert [leases.is_certain(tag) for tag in ("young", "old", "none")] == [True, False, False]
    leases.renew()
    assert [leases.is_certain(tag) for tag in ("young", "old", "none")] == [True, True, False]


def test_a_fetch_command_has_the_arguments_that_the_scripts_legend_lists() -> None:
    lists = {"urgent": True, "replies": False}
    slots = FreeSlots(9, 2, Counter(hot=3))
    command = fetch_command.fetch(["leases", RENEWALS_KEY], lists, slots, ["t1", "t2"])
    assert command.keys == ["leases", RENEWALS_KEY, "urgent", "replies"]
    assert command.args == [9, 2, '{"hot": 3}', 2, "t", "1,2", "1", "0"]


def test_a_fetch_command_says_who_holds_slots_only_if_slots_are_reserved() -> None:
    slots = FreeSlots(9, 0, Counter(hot=3))
    assert fetch_command.fetch([], {}, slots, []).args == [9, 0, "{}", 0, "", ""]


def test_a_fetch_command_by_prefix_affinity_ends_with_the_worker_and_the_limits() -> None:
    affinity = Affinity(["owners", "recent", "workers"], "w1", 5, AffinityLimits())
    slots = FreeSlots(9, 0, Counter())
    keys = ["leases", RENEWALS_KEY]
    command = fetch_command.fetch_near(keys, ["urgent"], slots, ["t1"], affinity)
    assert command.keys == ["leases", RENEWALS_KEY, "owners", "recent", "workers", "urgent"]
    assert command.args == [9, 0, "{}", 1, "t1", "", "w1", 5, 3.0, 5.0, 1.25, 4, 32, 20_000]
