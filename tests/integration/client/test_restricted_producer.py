"""A producer with the user `producer` of config/acl.py: what it can do, and what it cannot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from config import acl
from primarch_fleet import AsyncFleet, Completion, CompletionRequest, Fleet, Ticket, results
from primarch_fleet.budgets import ledger_keys
from primarch_fleet.errors import ResultExpired
from primarch_fleet.lane_health import LaneMonitor
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from primarch_fleet.redis_support import is_not_permitted
from tests.support.producer import CATALOGUE, DONE, finish, request
from tests.support.redis_server import DURABLE, RedisServer

QUEUES = ("realtime", "batch", "scheduler", "local.m[1]")
#: What belongs to others.
RESULT, STREAM = "celery-task-meta-others", "fleet:stream:others"


class Server(NamedTuple):
    urls: dict[str, str]
    admin: redis.Redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("restricted")
    server = RedisServer(folder / "redis", DURABLE | {"aclfile": f"{folder}/acl/users.acl"})
    acl.write(folder / "acl", server.url, QUEUES)
    urls = {
        file.stem: file.read_text().strip().partition("=")[2]
        for file in (folder / "acl").glob("*.env")
    }
    server.start()
    try:
        with redis.Redis.from_url(urls["admin"], decode_responses=True) as admin:
            CATALOGUE.publish(admin)
            yield Server(urls, admin)
    finally:
        server.kill()


@pytest.fixture
def producer(server: Server) -> Iterator[Any]:
    """A hostile producer, with redis-py in place of the fleet's client."""
    with redis.Redis.from_url(server.urls["producer"], decode_responses=True) as client:
        yield client


def script(client: Any, command: str, *arguments: str) -> Any:
    """Run a command in a script, without naming its keys."""
    text = "return redis.call(" + ",".join(f"'{word}'" for word in (command, *arguments)) + ")"
    return client.eval(text, 0)


def test_no_client_gets_in_without_a_password(server: Server) -> None:
    port = server.admin.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_producer_submits_without_the_ledger(server: Server) -> None:
    with Fleet(server.urls["producer"]) as fleet:
        before = server.admin.llen("realtime\x06\x163")
        message = [{"role": "user", "content": "Hi"}]
        tickets = fleet.submit_many(
            CompletionRequest(model="m", messages=message, tenant_id=tenant)
            for tenant in ("acme", "umbrella")
        )
        assert [fleet.status(ticket) for ticket in tickets] == ["PENDING", "PENDING"]
    assert server.admin.llen("realtime\x06\x163") == before + 2
    assert server.admin.keys("fleet:budget:*") == []  # the workers reserve


def test_a_producer_whose_user_an_older_version_has_made_may_use_idempotency_keys(
    server: Server,
) -> None:
    older = acl.rules(QUEUES)["producer"].replace("+get +exists +set", "+exists +set")
    admin: Any = server.admin
    admin.execute_command("ACL", "SETUSER", "older", "on", ">w", *_split(older))
    address = server.urls["producer"].rpartition("@")[2]
    with Fleet(f"redis://older:w@{address}") as fleet:
        keyed = request(idempotency_key="older")
        assert fleet.submit(keyed) == fleet.submit(keyed)


@pytest.mark.parametrize("user", ["producer", "older", "admin"])
def test_a_producer_sees_paused_queues_and_works_without_if_an_older_version_has_made_its_user(
    user: str, server: Server
) -> None:
    newest = acl.rules(QUEUES)["producer"]
    older = newest.replace(f"(-@all +smembers %R~{PAUSED_QUEUES_KEY})", "")
    assert older != newest
    admin: Any = server.admin
    admin.execute_command("ACL", "SETUSER", "older", "reset", "on", ">w", *_split(older))
    admin.sadd(PAUSED_QUEUES_KEY, "realtime")
    address = server.urls["producer"].rpartition("@")[2]
    urls = server.urls | {"older": f"redis://older:w@{address}"}
    catalogue = CATALOGUE.model_copy(update={"heartbeats": True})
    with redis.Redis.from_url(urls[user], decode_responses=True) as client:
        monitor = LaneMonitor(client)
        health = monitor.snapshot(catalogue)
        assert health is not None
        assert health.paused == (frozenset() if user == "older" else {"realtime"})
        admin.srem(PAUSED_QUEUES_KEY, "realtime")


def _split(rules: str) -> list[str]:
    """The rules as arguments; a selector in parentheses is one."""
    return re.findall(r"\([^)]*\)|\S+", rules.replace("??", "\x06\x16"))


def test_a_producer_learns_that_a_result_is_gone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "CHECK_SECONDS", 0.1)
    with Fleet(server.urls["producer"]) as fleet:
        ticket = fleet.submit(request())
        server.admin.zrem(OPEN_KEY, ticket.id)
        with pytest.raises(ResultExpired):
            fleet.result(ticket, 5.0)


def test_a_producer_waits_for_many_results(server: Server) -> None:
    async def results_of(tickets: list[Ticket]) -> list[Completion]:
        async with AsyncFleet(server.urls["producer"]) as fleet:
            return await fleet.results(tickets, 20.0)

    with Fleet(server.urls["producer"]) as fleet, Fleet(server.urls["admin"]) as admin:
        tickets = fleet.submit_many([request()] * 3)
        finish(admin, tickets[0].id)
        done = fleet.as_completed(tickets, 20.0)
        assert next(done).ticket == tickets[0]
        for ticket in tickets[1:]:
            finish(admin, ticket.id)
        assert len(list(done)) == 2
        assert asyncio.run(results_of(tickets)) == [DONE] * 3


def test_a_producer_sees_how_many_messages_wait_but_not_since_when(
    server: Server, producer: Any
) -> None:
    server.admin.lpush("realtime", '{"headers": {"fleet_submitted_at": 1.5}}')
    catalogue = CATALOGUE.model_copy(update={"heartbeats": True})
    health = LaneMonitor(producer).snapshot(catalogue)
    assert health is not None
    assert health.queued["realtime"] == server.admin.llen("realtime") + server.admin.llen(WAITING)
    assert health.oldest_wait_seconds["realtime"] is None
    of_admin = LaneMonitor(server.admin).snapshot(catalogue)
    assert of_admin is not None
    assert of_admin.oldest_wait_seconds["realtime"]


LEDGER = ledger_keys("acme")[0]
WAITING = "realtime\x06\x163"
HOSTILE = [
    # results and requests of others
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("DBSIZE",),
    ("PUBSUB", "CHANNELS"),
    ("PSUBSCRIBE", "celery-task-meta-*"),
    ("CLIENT", "TRACKING", "ON", "BCAST"),
    ("MONITOR",),
    ("SLOWLOG", "GET"),
    ("CLIENT", "LIST"),
    ("SET", RESULT, "{}"),
    ("DEL", RESULT),
    ("EXPIRE", RESULT, "1"),
    ("PUBLISH", RESULT, "{}"),
    ("XADD", STREAM, "*", "x", "y"),
    ("LRANGE", WAITING, "0", "-1"),
    ("LINDEX", WAITING, "0"),
    ("LPOP", WAITING),
    ("BRPOP", WAITING, "1"),
    ("LMOVE", WAITING, "realtime", "LEFT", "LEFT"),
    ("COPY", WAITING, "fleet:idempotency:x"),
    ("SORT", WAITING, "ALPHA"),
    ("DUMP", WAITING),
    ("DEL", WAITING),
    ("SET", WAITING, "x"),
    ("LTRIM", WAITING, "1", "0"),
    ("LRANGE", f"{WAITING}\x06\x16turns\x06\x16acme", "0", "-1"),
    ("LRANGE", "fleet:dead_letters", "0", "-1"),
    ("HGETALL", "fleet:leases"),
    ("ZRANGE", "fleet:leased_tasks", "0", "-1"),
    ("ZRANGE", OPEN_KEY, "0", "-1"),
    ("ZREM", OPEN_KEY, "others"),
    # money
    ("HGETALL", LEDGER),
    ("HSET", LEDGER, "x", "0"),
    ("DEL", LEDGER),
    ("HGETALL", "fleet:costs:2026-11-28"),
    # what all producers rely on
    ("SET", "fleet:catalogue", "{}"),
    ("DEL", "fleet:catalogue"),
    ("SET", "fleet:alive:realtime", "1"),
    ("HSET", "fleet:rates:realtime", "x", "9 9"),
    ("SADD", PAUSED_QUEUES_KEY, "realtime"),
    ("SREM", PAUSED_QUEUES_KEY, "realtime"),
    ("SADD", "_kombu.binding.realtime", "x"),
    ("GET", "fleet:hash_key"),
    ("SET", "fleet:cancelled:others", "waiting"),
    # workers and the server
    ("PUBLISH", "/0.celery.pidbox", "{}"),
    ("PUBLISH", "/0.celeryev/worker.heartbeat", "{}"),
    ("FLUSHALL",),
    ("SHUTDOWN", "NOSAVE"),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "DUMP"),
    ("MEMORY", "PURGE"),
    ("REPLICAOF", "example", "1"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", "1000"),
    ("SWAPDB", "0", "1"),
]


@pytest.mark.parametrize("user", ["producer", "api"])
@pytest.mark.parametrize("command", HOSTILE, ids=" ".join)
def test_a_hostile_producer_is_refused(server: Server, user: str, command: list[str]) -> None:
    with redis.Redis.from_url(server.urls[user], decode_responses=True) as client:
        refuses(client, command)


def refuses(client: Any, command: list[str]) -> None:
    with pytest.raises(redis.ResponseError) as refused:
        client.execute_command(*command)
    assert is_not_permitted(refused.value), refused.value
    if len(command) > 1 and command[0] not in ("PSUBSCRIBE", "BRPOP"):
        with pytest.raises(redis.ResponseError) as in_script:
            script(client, *command)
        text = str(in_script.value)
        assert is_not_permitted(in_script.value) or "not allowed from script" in text, text


def test_a_producer_reads_a_result_whose_id_it_knows_and_finds_no_other(
    server: Server, producer: Any
) -> None:
    server.admin.set(RESULT, "{}")
    assert producer.get(RESULT) == "{}"  # as docs/limits.md says
    server.admin.lpush(f"{WAITING}\x06\x16turns", "acme")
    assert producer.lrange(f"{WAITING}\x06\x16turns", 0, -1) == ["acme"]  # tenants that wait


def test_the_files_have_no_password_of_another_user_and_are_private(tmp_path: Path) -> None:
    acl.write(tmp_path / "acl", "redis://127.0.0.1/0", QUEUES)
    files = {path.name: path for path in (tmp_path / "acl").iterdir()}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    rules = files["users.acl"].read_text()
    assert rules.startswith("user default reset off\n")
    before = {name: path.read_text() for name, path in files.items()}
    for name in files.keys() - {"users.acl"}:
        secret = before[name].partition("://")[2].partition("@")[0].partition(":")[2]
        assert len(secret) > 40
        assert [other for other, text in before.items() if secret in text] == [name]
    acl.write(tmp_path / "acl", "rediss://redis.example/1", QUEUES)  # keeps the passwords
    after = files["producer.env"].read_text()
    assert (
        after.replace("rediss://", "redis://").partition("@")[0]
        == before["producer.env"].partition("@")[0]
    )
    assert after.endswith("@redis.example/1?ssl_cert_reqs=required&ssl_check_hostname=true\n")
    assert "&/1.celery.pidbox" in files["users.acl"].read_text()


def test_a_url_with_a_user_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="without a user"):
        acl.main([str(tmp_path), "redis://user:hunter2@host/0"])
