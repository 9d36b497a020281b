"""`/v1/files` through the openai SDK, and by hand where the SDK sends no such call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import redis
from openai import OpenAI

from tests.support.api_batches import ended, start
from tests.support.api_server import ALPHA, BETA, ApiServer, api_server, fleet_yaml
from tests.support.producer import CATALOGUE
from tests.support.workers import eventually

MAX_FILE_BYTES, MAX_STORED_BYTES = 5 * 2**20, 12 * 2**20
CONTENT = b'{"custom_id": "1"}\n'


@pytest.fixture(scope="module")
def server(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("files")
    limits: dict[str, Any] = {
        "max_file_bytes": MAX_FILE_BYTES,
        "max_stored_bytes": MAX_STORED_BYTES,
    }
    config = fleet_yaml(folder / "fleet.yaml", upload_timeout=2.0, **limits)
    with api_server(valkey_url, folder, config) as server:
        yield server


@pytest.fixture
def client(server: ApiServer, store: redis.Redis) -> Iterator[OpenAI]:
    """The SDK, of an emptied Redis."""
    CATALOGUE.publish(store)
    with server.client() as client:
        yield client


def upload(client: OpenAI, content: bytes = CONTENT, name: str = "in.jsonl", **more: Any) -> Any:
    return client.files.create(file=(name, content), **{"purpose": "batch"} | more)


def form(server: ApiServer, headers: dict[str, str] | None = None, **options: Any) -> Any:
    """POST /v1/files without the SDK."""
    headers = {"Authorization": f"Bearer {ALPHA}"} | (headers or {})
    return httpx.post(f"{server.root}/v1/files", headers=headers, **options)


@pytest.mark.parametrize("size_bytes", [0, 1, 2**20, 3 * 2**20 + 7])
def test_a_file_comes_back_as_it_was(client: OpenAI, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    file = upload(client, content)
    assert (file.object, file.bytes, file.purpose) == ("file", size_bytes, "batch")
    assert (file.filename, file.status) == ("in.jsonl", "processed")
    assert file.expires_at == file.created_at + 3 * 86_400
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_every_key_of_a_file_expires_and_none_is_left_of_a_deleted_one(
    client: OpenAI, store: redis.Redis
) -> None:
    file = upload(client, expires_after={"anchor": "created_at", "seconds": 3_600})
    assert file.expires_at == file.created_at + 3_600
    keys = list(store.scan_iter("fleet:api:*"))
    assert len(keys) == 5
    assert all(int(store.ttl(key)) > 0 for key in keys)
    assert 3_500 < int(store.ttl(f"fleet:api:file:{file.id}")) <= 3_600
    assert 3_500 < int(store.ttl(f"fleet:api:file_parts:{file.id}")) <= 3_600
    client.files.delete(file.id)
    assert [*store.scan_iter("fleet:api:*")] == ["fleet:api:file_sizes:alpha"]
    assert store.hgetall("fleet:api:file_sizes:alpha") == {"total": "0"}


def test_a_file_that_has_expired_gives_its_room_back(client: OpenAI, store: redis.Redis) -> None:
    for _ in range(2):
        file = upload(client, bytes(MAX_FILE_BYTES))
    store.delete(f"fleet:api:file:{file.id}", f"fleet:api:file_parts:{file.id}")
    store.zadd("fleet:api:file_expiry:alpha", {file.id: time.time() - 1})
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert len(client.files.list().data) == 1
    upload(client, bytes(MAX_FILE_BYTES))
    assert len(client.files.list().data) == 2


def test_a_file_or_a_tenants_files_that_are_too_large_are_refused(
    client: OpenAI, server: ApiServer, store: redis.Redis
) -> None:
    with pytest.raises(openai.APIStatusError) as found:
        upload(client, bytes(MAX_FILE_BYTES + 1))
    assert found.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as found:
        upload(client, bytes(2 * MAX_FILE_BYTES))
    assert found.value.status_code == 413
    for _ in range(2):
        upload(client, bytes(MAX_FILE_BYTES))
    with pytest.raises(openai.APIStatusError, match="delete files") as found:
        upload(client, bytes(MAX_FILE_BYTES))
    assert found.value.status_code == 413
    assert found.value.response.headers["x-should-retry"] == "false"
    assert store.hget("fleet:api:file_sizes:alpha", "total") == str(2 * MAX_FILE_BYTES)
    assert len([*store.scan_iter("fleet:api:file_parts:*")]) == 2, "nothing is left of it"
    upload(server.client(BETA), bytes(MAX_FILE_BYTES))


def test_a_file_without_a_declared_size_is_refused_where_it_becomes_too_large(
    server: ApiServer, client: OpenAI
) -> None:
    sent_bytes = 0

    def body() -> Iterator[bytes]:
        nonlocal sent_bytes
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent_bytes < 20 * MAX_FILE_BYTES:
            yield bytes(2**18)
            sent_bytes += 2**18

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert form(server, headers, content=body()).status_code == 413
    assert sent_bytes < 4 * MAX_FILE_BYTES


def test_other_purposes_and_forms_say_what_to_send(client: OpenAI, server: ApiServer) -> None:
    for purpose in ("fine-tune", "assistants", "batch_output"):
        with pytest.raises(openai.BadRequestError, match="purpose 'batch' only"):
            upload(client, purpose=purpose)
    assert "multipart/form-data" in form(server, json={"purpose": "batch"}).text
    assert "purpose: missing" in form(server, files={"file": ("a", CONTENT)}).text
    no_file = form(server, data={"purpose": "batch", "file": "text"}, files={"x": ("x", b"")})
    assert (no_file.status_code, no_file.json()["error"]["param"]) == (400, "file")
    two = [("file", ("a", CONTENT)), ("file", ("b", CONTENT))]
    assert "the form is wrong" in form(server, data={"purpose": "batch"}, files=two).text
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"--x\r\nbroken", b"--y\r\n", b""):
        assert form(server, headers, content=content).status_code == 400
    for seconds in (60, "soon", -1):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            upload(client, expires_after={"anchor": "created_at", "seconds": seconds})


def test_a_files_name_is_only_a_name(client: OpenAI, tmp_path: Path) -> None:
    name = "../../etc/pass\twd\u202e" + "ü" * 300
    file = upload(client, name=name)
    assert file.filename.startswith("../../etc/pass")
    assert len(file.filename) <= 255
    assert file.filename.isprintable()
    answer = client.files.with_raw_response.content(file.id)
    assert answer.headers["content-disposition"] == f'attachment; filename="{file.id}.jsonl"'


def test_a_client_that_sends_slowly_is_told_so(server: ApiServer, client: OpenAI) -> None:
    async def post() -> int:
        async def content() -> Any:
            yield b"--x\r\n"
            await asyncio.sleep(30)

        headers = {
            "Authorization": f"Bearer {ALPHA}",
            "content-type": "multipart/form-data; boundary=x",
        }
        async with httpx.AsyncClient(timeout=20) as http:
            try:
                url = f"{server.root}/v1/files"
                return (await http.post(url, content=content(), headers=headers)).status_code
            except httpx.HTTPError:  # the server has closed the connection meanwhile
                return 408

    assert asyncio.run(post()) == 408


def test_a_process_without_batches_leaves_them_to_the_others(
    valkey_url: str, client: OpenAI, tmp_path: Path
) -> None:
    path = fleet_yaml(tmp_path / "fleet.yaml")
    with api_server(valkey_url, tmp_path, path, "--no-batches") as server:
        batches = [start(server.client(), b"no json\n") for _ in range(8)]
        assert {ended(client, batch).status for batch in batches} == {"failed"}
        assert "batch_" not in server.log.read_text()


def test_a_large_file_is_never_in_memory_as_a_whole(
    valkey_url: str, store: redis.Redis, tmp_path: Path
) -> None:
    CATALOGUE.publish(store)
    size_bytes = 150 * 2**20
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        for _ in range(150):
            file.write(os.urandom(2**20))
    config = fleet_yaml(tmp_path / "fleet.yaml")
    with api_server(valkey_url, tmp_path, config) as server, server.client() as client:
        process = psutil.Process(server.process.pid)
        before, most = process.memory_info().rss, 0
        with path.open("rb") as content:
            stored = client.files.create(file=content, purpose="batch")
        most = max(most, process.memory_info().rss)
        received = 0
        with client.files.with_streaming_response.content(stored.id) as answer:
            for part in answer.iter_bytes():
                received += len(part)
                most = max(most, process.memory_info().rss)
        assert received == stored.bytes == size_bytes
        assert most - before < 60 * 2**20
        client.files.delete(stored.id)
        eventually(lambda: not [*store.scan_iter("fleet:api:file_parts:*")])
