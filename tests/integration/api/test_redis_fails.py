"""`fleet serve` on a Redis that is full, that is gone, or that stores a part only."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis
from openai import OpenAI

from primarch_fleet import Fleet
from primarch_fleet.errors import EngineError
from primarch_fleet.outgoing import OPEN_KEY
from tests.support.api_batches import ended, line, lines, start
from tests.support.api_server import ALPHA, ApiServer, api_server, fleet_yaml
from tests.support.producer import CATALOGUE, DONE, finish, messages
from tests.support.redis_server import RedisServer, redis_server
from tests.support.workers import eventually

REALTIME = {"x-fleet-lane": "realtime"}
PART_BYTES = 2**20
#: Calls that need Redis. `{file}`, `{batch}` and `{response}` are ids.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/files", {"files": {"file": ("x", b"{}")}, "data": {"purpose": "batch"}}),
    ("GET", "/files", {}),
    ("GET", "/files/{file}", {}),
    ("GET", "/files/{file}/content", {}),
    ("DELETE", "/files/{file}", {}),
    (
        "POST",
        "/batches",
        {
            "json": {
                "input_file_id": "{file}",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
        },
    ),
    ("GET", "/batches", {}),
    ("GET", "/batches/{batch}", {}),
    ("POST", "/batches/{batch}/cancel", {}),
    ("POST", "/responses", {"json": {"model": "m", "input": "hi", "background": True}}),
    ("GET", "/responses/{response}", {}),
    ("POST", "/responses/{response}/cancel", {}),
    ("DELETE", "/responses/{response}", {}),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        CATALOGUE.publish(server.client())
        yield server


@pytest.fixture
def api(server: RedisServer, tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(server.url, tmp_path, fleet_yaml(tmp_path / "fleet.yaml")) as api:
        yield api


@pytest.fixture
def client(api: ApiServer) -> Iterator[OpenAI]:
    with api.client() as client:
        yield client


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as store:
        yield store


def fill(store: redis.Redis, room_bytes: int = 0) -> None:
    """Leave this much memory."""
    used = int(store.info("memory")["used_memory"])
    store.config_set("maxmemory", max(1, used + room_bytes if room_bytes else 1))


def refused_as_full(call: Callable[[], Any]) -> None:
    with pytest.raises(openai.RateLimitError, match="of its memory is used") as found:
        call()
    assert found.value.response.headers["x-should-retry"] == "true"
    assert int(found.value.response.headers["retry-after"]) > 0


def upload(client: OpenAI, size_bytes: int) -> Any:
    return client.files.create(file=("in.jsonl", bytes(size_bytes)), purpose="batch")


def test_a_file_that_a_full_redis_takes_in_part_is_refused_and_leaves_nothing(
    client: OpenAI, api: ApiServer, store: redis.Redis
) -> None:
    fill(store, 6 * PART_BYTES)
    before = set(store.keys("fleet:api:*"))
    refused_as_full(lambda: upload(client, 30 * PART_BYTES))
    refused_as_full(lambda: upload(client, 30 * PART_BYTES))
    assert set(store.keys("fleet:api:*")) - before <= {"fleet:api:file_sizes:alpha"}
    assert store.hgetall("fleet:api:file_sizes:alpha") == {"total": "0"}
    store.config_set("maxmemory", 0)
    assert upload(client, 30 * PART_BYTES).status == "processed"
    assert "Traceback" not in api.log.read_text()


def test_a_batch_is_cancelled_while_redis_is_full(client: OpenAI, store: redis.Redis) -> None:
    batch = start(client, lines([line("1", model="m")]), metadata=REALTIME)
    eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    fill(store)
    assert client.batches.cancel(batch.id).status == "cancelling"
    store.config_set("maxmemory", 0)
    assert ended(client, batch).status == "cancelled"


def test_every_call_says_that_redis_does_not_answer(
    client: OpenAI, api: ApiServer, server: RedisServer
) -> None:
    response = client.responses.create(model="m", input="hi", background=True)
    batch = start(client, lines([line("1", model="m")]), metadata=REALTIME)
    ids = {"file": batch.input_file_id, "batch": batch.id, "response": response.id}
    server.kill()
    headers = {"Authorization": f"Bearer {ALPHA}"}
    with httpx.Client(base_url=f"{api.root}/v1", headers=headers, timeout=30) as plain:
        for method, path, options in CALLS:
            answer = plain.request(method, path.format(**ids), **options)
            found = answer.status_code, answer.json()["error"]["code"]
            assert found == (503, "fleet_unavailable"), (method, path)
            assert answer.headers["x-should-retry"] == "true"
    assert "Traceback" not in api.log.read_text()


def test_a_background_response_that_cannot_be_stored_is_cancelled(
    server: RedisServer, store: redis.Redis, tmp_path: Path
) -> None:
    # A user who submits and cancels, and writes none of the API's own keys.
    rules = "on >w &* +@all %R~* ~celery* ~_kombu* ~realtime* ~fleet:[^a]*"
    execute: Any = store.execute_command
    execute("ACL", "SETUSER", "part", *rules.split())
    url = server.url.replace("://", "://part:w@")
    config = fleet_yaml(tmp_path / "fleet.yaml")
    with api_server(url, tmp_path, config, "--no-batches") as api, api.client() as client:
        with pytest.raises(openai.InternalServerError) as found:
            client.responses.create(model="m", input="hi", background=True, extra_headers=REALTIME)
        assert found.value.status_code == 503
        eventually(lambda: store.keys("fleet:cancelled:*"))
        eventually(lambda: store.zcard(OPEN_KEY) == 0)


def test_a_batch_whose_files_do_not_fit_leaves_none_of_them(
    client: OpenAI, api: ApiServer, server: RedisServer, store: redis.Redis
) -> None:
    with Fleet(server.url) as fleet:
        content = lines([line("1", model="m"), line("2" * 32 * PART_BYTES, model="m")])
        batch = start(client, content, metadata=REALTIME)
        eventually(lambda: store.llen("realtime\x06\x166") == 2)
        ids = [message["headers"]["id"] for message in messages(store)]
        api.process.send_signal(signal.SIGSTOP)
        answer = {"choices": [{"message": {"content": "x" * 4 * PART_BYTES}}]}
        finish(fleet, ids[0], DONE.model_copy(update={"body": answer}).model_dump(mode="json"))
        finish(fleet, ids[1], EngineError("failed"), "FAILURE")
        fill(store, 16 * PART_BYTES)  # for the output file, not for the error file
        api.process.send_signal(signal.SIGCONT)
    eventually(lambda: "left for later: command not allowed" in api.log.read_text())
    assert store.keys("fleet:api:file_parts:*") == [f"fleet:api:file_parts:{batch.input_file_id}"]
