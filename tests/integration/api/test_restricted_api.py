"""`fleet serve` with the Redis user `api` of config/acl.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import redis
from redis.exceptions import NoPermissionError

from config import acl
from primarch_fleet import Fleet
from primarch_fleet.budgets import ledger_keys
from primarch_fleet.errors import ResultTimeout
from tests.support.api_batches import ended, line, lines, read, start
from tests.support.api_server import BETA, READER, ApiServer, api_server, fleet_yaml
from tests.support.producer import CATALOGUE, finish
from tests.support.redis_server import DURABLE, RedisServer
from tests.support.workers import eventually

QUEUES = ("realtime", "batch", "scheduler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restricted_api")


@pytest.fixture(scope="module")
def urls(folder: Path) -> Iterator[dict[str, str]]:
    server = RedisServer(folder / "redis", DURABLE | {"aclfile": f"{folder}/acl/users.acl"})
    acl.write(folder / "acl", server.url, QUEUES)
    server.start()
    try:
        yield {
            file.stem: file.read_text().strip().partition("=")[2]
            for file in (folder / "acl").glob("*.env")
        }
    finally:
        server.kill()


@pytest.fixture(scope="module")
def restricted(folder: Path, urls: dict[str, str]) -> Iterator[ApiServer]:
    with redis.Redis.from_url(urls["admin"], decode_responses=True) as admin:
        CATALOGUE.publish(admin)
    with api_server(urls["api"], folder, fleet_yaml(folder / "fleet.yaml")) as server:
        yield server


def test_requests_are_sent_and_shown_to_their_tenant(restricted: ApiServer) -> None:
    with restricted.client() as client, restricted.client(BETA) as other:
        assert [model.id for model in client.models.list()] == ["m"]
        created = client.responses.create(model="m", input="hi", background=True)
        assert client.responses.retrieve(created.id).status == "queued"
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(created.id)
        client.responses.delete(created.id)
    assert "NOPERM" not in restricted.log.read_text()


def test_a_batch_is_run_and_its_files_are_the_tenants(
    restricted: ApiServer, urls: dict[str, str]
) -> None:
    with (
        redis.Redis.from_url(urls["admin"], decode_responses=True) as admin,
        Fleet(urls["admin"]) as fleet,
        restricted.client() as client,
    ):
        content = lines([line("1", model="m")])
        batch = start(client, content, metadata={"x-fleet-lane": "realtime"})
        message = eventually(lambda: admin.rpop("realtime\x06\x166"))
        finish(fleet, json.loads(message)["headers"]["id"])
        batch = ended(client, batch)
        assert sorted(read(client, batch.output_file_id)) == ["1"]
        assert client.files.delete(str(batch.output_file_id)).deleted
    assert "NOPERM" not in restricted.log.read_text()


def test_the_user_asks_the_scheduler_about_an_id_that_it_finds_nowhere(
    restricted: ApiServer, urls: dict[str, str]
) -> None:
    with Fleet(urls["api"]) as fleet, pytest.raises(ResultTimeout, match="batch worker"):
        fleet.cancel("nope", timeout=0.5)


def test_the_user_touches_nothing_else(restricted: ApiServer, urls: dict[str, str]) -> None:
    day = ledger_keys("acme")[0]
    with redis.Redis.from_url(urls["api"]) as client:
        for command in (
            ("GET", day),
            ("HGETALL", day),
            ("SET", "fleet:catalogue", "x"),
            ("DEL", "fleet:leases"),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("PUBLISH", "/0.celery.pidbox", "x"),
        ):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)
        client.execute_command("SET", "fleet:api:test", "1")
        client.execute_command("DEL", "fleet:api:test")


def test_the_page_needs_the_user_operator_and_says_so(
    restricted: ApiServer, urls: dict[str, str], folder: Path
) -> None:
    for path in ("", "/requests", "/batches", "/dead-letters"):
        refused = httpx.get(restricted.root + path, auth=("any", READER))
        assert refused.status_code == 503
        assert "the page needs the user `operator`" in refused.text
    with api_server(urls["operator"], folder, folder / "fleet.yaml") as server:
        for path in ("", "/requests", "/batches", "/dead-letters"):
            assert httpx.get(server.root + path, auth=("any", READER)).status_code == 200
        assert "NOPERM" not in server.log.read_text()
