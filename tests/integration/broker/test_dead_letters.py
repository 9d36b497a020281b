"""Dead letters on a real server: how many are kept, and what operators do with them."""

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from scheduler.admin.dead_letters import DeadLetters, NoSuchLetter, NotReplayable
from scheduler.fleet_metrics.dead_letters import DeadLetterCollector
from tests.support.fork_server import run_forked
from tests.support.tenants_queue import fetch_from
from workers.runtime import dead_letters
from workers.runtime.dead_letters import DEAD_LETTER_COUNTS, DEAD_LETTERS, Undeliverable
from workers.runtime.leases.leases import Leases, LeaseSettings

pytestmark = pytest.mark.anyio

PROMPT = "the prompt of a tenant"
QUEUE = "batch"
RESULT = "celery-task-meta-id"


@pytest.fixture
def leases(valkey_url: str, store: redis.Redis) -> Iterator[Leases]:
    with redis.Redis.from_url(valkey_url) as client:
        leases = Leases()
        leases.connect(client, LeaseSettings(visibility_timeout=60, max_deliveries=5))
        leases.on_dead_letter = lambda *_: None
        yield leases


@pytest.fixture
async def letters(valkey_url: str, leases: Leases) -> AsyncIterator[DeadLetters]:
    async with redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield DeadLetters(client)


def message(request: object = PROMPT, task_id: str = "id", **properties: Any) -> str:
    body = base64.b64encode(json.dumps([[request], {}, {}]).encode()).decode()
    headers = {"id": task_id, "task": "batch.complete"}
    properties = {"correlation_id": task_id, "fleet_deliveries": 5, **properties}
    return json.dumps({"body": body, "headers": headers, "properties": properties})


def bury(store: redis.Redis, leases: Leases, text: str = message(), kind: str = "invalid") -> None:
    """Make a message of the batch lane a dead letter."""
    store.lpush(QUEUE, text)
    assert fetch_from(store, QUEUE, tags=("tag",))
    leases.dead_letter("tag", Undeliverable(kind, ValueError("why")))


def samples(store: redis.Redis) -> dict[str, float]:
    return {
        ":".join((sample.name, *sample.labels.values())): sample.value
        for metric in DeadLetterCollector(store).collect()
        for sample in metric.samples
    }


async def test_a_list_names_the_task_and_the_reason_and_hides_the_prompt(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases)
    bury(store, leases, "{nonsense", kind="malformed")
    unreadable, readable = await letters.list()
    assert (readable.kind, readable.queue, readable.error) == ("invalid", QUEUE, "ValueError: why")
    assert (readable.task, readable.task_id) == ("batch.complete", "id")
    assert (unreadable.task, unreadable.task_id) == ("", "")
    assert PROMPT not in repr([unreadable, readable])
    assert [letter.id for letter in await letters.list(limit=1)] == [unreadable.id]


async def test_a_dead_letter_is_shown_with_its_message_on_request(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases)
    bury(store, leases, "{nonsense")
    unreadable, readable = await letters.list()
    assert (await letters.show(readable.id))["message"]["body"] == [[PROMPT], {}, {}]
    assert (await letters.show(unreadable.id))["message"] == "{nonsense"


async def test_a_dead_letter_goes_back_to_its_queue_once_although_two_operators_replay_it(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases)
    store.set(RESULT, '{"status": "FAILURE", "result": {}}')
    (letter,) = await letters.list()
    outcomes = await asyncio.gather(
        *(letters.replay(letter.id) for _ in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(NoSuchLetter) == 4
    (text,) = store.lrange(QUEUE, 0, -1)
    assert json.loads(text)["properties"] == {"correlation_id": "id"}, (
        "its deliveries are not counted"
    )
    assert not store.exists(RESULT, DEAD_LETTERS), "a stored failure would be final"
    assert store.hget(DEAD_LETTER_COUNTS, "bytes") == "0"


async def test_a_result_that_is_no_failure_stays(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases)
    store.set(RESULT, '{"status": "SUCCESS", "result": {}}')
    (letter,) = await letters.list()
    await letters.replay(letter.id)
    assert store.exists(RESULT)


async def test_a_dead_letter_that_no_worker_can_read_is_not_replayed_and_stays(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases, "{nonsense")
    leases.dead_broadcast("celery.pidbox", message(), ValueError("why"))
    for letter in await letters.list():
        with pytest.raises(NotReplayable, match="drop it"):
            await letters.replay(letter.id)
    assert store.llen(DEAD_LETTERS) == 2
    assert not store.exists(QUEUE)


async def test_a_dropped_dead_letter_is_gone(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    bury(store, leases)
    (letter,) = await letters.list()
    await letters.drop(letter.id)
    assert not store.exists(DEAD_LETTERS, QUEUE)
    with pytest.raises(NoSuchLetter):
        await letters.drop(letter.id)


async def test_the_oldest_dead_letters_are_dropped_and_counted_when_there_are_too_many(
    store: redis.Redis, leases: Leases, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_LETTERS", 3)
    for number in range(5):
        bury(store, leases, message(number=number), kind=f"kind{number % 2}")
    assert len(await letters.list()) == 3
    monkeypatch.setattr(dead_letters, "MAX_BYTES", 10)
    bury(store, leases, message(number=9))
    assert [letter.kind for letter in await letters.list()] == ["invalid"], "the newest stays"
    assert samples(store) == {
        "primarch_dead_letters_kept": 1,
        "primarch_dead_letters_dropped_total": 5,
        "primarch_dead_letters_total:kind0:batch": 3,
        "primarch_dead_letters_total:kind1:batch": 2,
        "primarch_dead_letters_total:invalid:batch": 1,
    }


async def test_a_list_that_an_operator_has_deleted_counts_its_bytes_again(
    store: redis.Redis, leases: Leases, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(store, leases)
    (letter,) = await letters.list()
    monkeypatch.setattr(dead_letters, "MAX_BYTES", int(letter.bytes * 2.5))
    store.delete(DEAD_LETTERS)
    bury(store, leases)
    bury(store, leases)
    assert len(await letters.list()) == 2


async def test_a_broadcast_that_each_worker_refuses_is_one_dead_letter(
    store: redis.Redis, leases: Leases, letters: DeadLetters
) -> None:
    for _ in range(3):
        leases.dead_broadcast("celery.pidbox", "{nonsense", ValueError("why"))
    assert [letter.kind for letter in await letters.list()] == ["broadcast"]


def command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked(["scheduler", *arguments], os.environ | {"FLEET_REDIS_URL": url})


async def test_a_retry_replays_those_of_a_tenant_a_model_and_a_lane(
    store: redis.Redis, leases: Leases, letters: DeadLetters, valkey_url: str
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = command(valkey_url, *arguments)
        assert PROMPT not in result.stdout + result.stderr
        return result.returncode, result.stderr

    for tenant in ("one", "two"):
        for model in ("small", "large"):
            asked = {"model": model, "tenant_id": tenant, "messages": PROMPT}
            bury(store, leases, message(asked, f"{tenant}-{model}"))
    bury(store, leases, message())
    bury(store, leases, "{nonsense", kind="malformed")
    listed = command(valkey_url, "dead", "list", "--json", "--tenant", "two")
    found = {
        (one["task_id"], one["tenant"], one["model"], one["lane"])
        for one in json.loads(listed.stdout)["dead_letters"]
    }
    assert found == {(f"two-{model}", "two", model, "batch") for model in ("small", "large")}

    assert run("retry", "--tenant", "three") == (0, "no dead letter matches\n")
    assert run("retry", "--tenant", "one", "--lane", "realtime") == (0, "no dead letter matches\n")
    code, text = run("retry", "--tenant", "one", "--model", "small")
    assert (code, text.partition(": ")[2]) == (0, "task one-small is in its queue again\n")
    assert run("retry", "two-large")[0] == 0, "by the task's id"
    waiting = [json.loads(text)["headers"]["id"] for text in store.lrange(QUEUE, 0, -1)]
    assert waiting == ["two-large", "one-small"]
    code, text = run("retry", "two-large")
    assert (code, "its producer submits it again" in text) == (2, True)
    assert run("retry")[0] == run("retry", "x", "--all")[0] == 2
    assert run("dead", "drop", "--lane", "batch", "--model", "small")[0] == 0
    kept = [(one.tenant, one.model, one.lane) for one in await letters.list()]
    assert kept == [("", "", "batch"), ("", "", "batch"), ("one", "large", "batch")]


async def test_a_replay_says_what_to_do_about_a_task_that_no_worker_knew(
    store: redis.Redis, leases: Leases, letters: DeadLetters, valkey_url: str
) -> None:
    bury(store, leases, kind="unknown_task")
    said = command(valkey_url, "dead", "replay", "--all")
    assert (said.returncode, store.llen(QUEUE)) == (0, 1)
    assert f"no worker of the queue {QUEUE} knew batch.complete" in said.stderr
    assert "becomes a dead letter again" in said.stderr


def test_help_and_errors_name_the_command_that_was_typed(valkey_url: str) -> None:
    for name in ("dead", "dead-letters"):
        assert f" {name} [-h]" in command(valkey_url, name, "--help").stdout
        assert command(valkey_url, name, "drop").stderr.startswith(f"{name}: give either ids")
        assert f" {name}: error: " in command(valkey_url, name, "explode").stderr


async def test_the_command_lists_shows_replays_and_drops(
    store: redis.Redis, leases: Leases, letters: DeadLetters, valkey_url: str
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command(valkey_url, "dead-letters", *arguments)

    def bury_both() -> None:
        bury(store, leases)
        bury(store, leases, "{nonsense", kind="malformed")

    bury_both()
    unreadable, readable = await letters.list()
    table = run("list")
    assert readable.id in table.stdout
    assert PROMPT not in table.stdout
    assert PROMPT in run("show", readable.id).stdout
    assert run("replay", readable.id, unreadable.id).returncode == 1
    assert store.llen(QUEUE) == 1
    assert run("drop", unreadable.id, unreadable.id).returncode == 2
    assert not store.exists(DEAD_LETTERS)

    store.flushall()
    bury_both()
    assert readable.id not in run("list", "--kind", "malformed").stdout
    assert run("replay").returncode == run("drop", readable.id, "--all").returncode == 2
    assert run("replay", "--kind", "malformed").returncode == 1
    assert run("drop", "--task", "realtime.complete", "--queue", QUEUE).returncode == 0
    assert store.llen(DEAD_LETTERS) == 2
    assert run("replay", "--task", "batch.complete").returncode == 0
    assert store.llen(QUEUE) == 1
    assert run("drop", "--all").returncode == 0
    assert not store.exists(DEAD_LETTERS)
