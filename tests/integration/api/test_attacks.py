"""What hostile clients send: nothing leaks, nothing hangs, nothing ends the server."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.support.api_server import ALPHA, EXPIRED, KEYS, NARROW, READER, ApiServer, api_server
from tests.support.api_server import fleet_yaml as write_config
from tests.support.producer import CATALOGUE
from tests.support.workers import eventually

#: Of the server in these tests, in seconds.
UPLOAD_SECONDS = 1.0
#: Longer than a slow client may stay.
PATIENCE_SECONDS = 15.0
CHAT = "/v1/chat/completions"
PATHS = [
    ("POST", CHAT),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/moderations"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_1"),
    ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/gpt-4o"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def attacked(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("attacked")
    config = write_config(folder / "fleet.yaml", upload_timeout=UPLOAD_SECONDS, max_connections=100)
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushall()
        CATALOGUE.model_copy(update={"max_request_bytes": 1_000_000}).publish(client)
        with api_server(valkey_url, folder, config) as server:
            yield server


@pytest.fixture
def http(attacked: ApiServer) -> Iterator[httpx.Client]:
    """A client with the key of `alpha`. After the test the server still answers."""
    headers = {"authorization": f"Bearer {ALPHA}"}
    with httpx.Client(base_url=attacked.root, headers=headers, timeout=60) as client:
        yield client
        assert client.get("/healthz").status_code == 200
    log = attacked.log.read_text()
    assert "Traceback" not in log
    assert ALPHA not in log


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer sk-fleet-wrong",
        f"Bearer {ALPHA}x",
        f"Bearer {ALPHA[:-1]}",
        f"Bearer {EXPIRED}",
        f"Token {ALPHA}",
        "Basic !!!",
        "Basic Zm9v",
        "Bearer \xff\xfe",
    ],
)
def test_no_path_answers_without_a_good_key(
    attacked: ApiServer, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    answer = httpx.request(method, attacked.root + path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "www-authenticate" in answer.headers


def test_a_caller_sees_no_metrics_and_a_reader_does(attacked: ApiServer) -> None:
    seen = {
        key: httpx.get(f"{attacked.root}/metrics", headers={"authorization": f"Bearer {key}"})
        for key in (ALPHA, READER)
    }
    assert seen[ALPHA].status_code == 403
    assert seen[READER].status_code == 200
    assert "primarch_api_calls_total" in seen[READER].text


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../metrics",
        "//v1/models",
        "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/responses/%2e%2e%2fmodels",
        "/v1/responses/resp_%0d%0aset-cookie:x",
        "/v1/responses/" + "a" * 20_000,
        "/v1/responses/*",
        "/static/../../../etc/passwd",
        "/%ff%fe",
    ],
)
def test_a_strange_path_is_not_found(attacked: ApiServer, http: httpx.Client, target: str) -> None:
    answer = _raw(
        attacked, f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALPHA}\r\n"
    )
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in answer
    assert b"set-cookie" not in answer.lower().split(b"\r\n\r\n")[0]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "OPTIONS", "FOO"])
def test_a_strange_method_is_refused(http: httpx.Client, method: str) -> None:
    answer = http.request(method, CHAT)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_a_large_body_is_refused_by_its_length(attacked: ApiServer, http: httpx.Client) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALPHA}\r\n"
    answer = _raw(attacked, f"{head}Content-Length: {100 * 2**20}\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_large_body_without_a_length_is_cut_off(attacked: ApiServer, http: httpx.Client) -> None:
    process = psutil.Process(attacked.process.pid)
    before = process.memory_info().rss
    part = b" " * 2**20

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield part

    with suppress(httpx.WriteError):  # the server closes the connection before all is sent
        assert http.post(CHAT, content=endless()).status_code == 413
    assert process.memory_info().rss - before < 50 * 2**20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe\x00",
        b'{"model": "m", "messages": ' + b"9" * 5_000 + b"}",
        b'{"model": "m", "messages": [{"role": "user", "content": NaN}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": {"a": 1}, "messages": []}',
        json.dumps(chat(metadata=[1])).encode(),
        json.dumps(chat(metadata={"x-fleet-lane": {"a": 1}})).encode(),
        json.dumps(chat(metadata={"x-fleet-max-cost-usd": "NaN"})).encode(),
        json.dumps(chat(metadata={"x-fleet-max-cost-usd": "1e400"})).encode(),
        json.dumps(chat(metadata={"x-fleet-quality": "inf"})).encode(),
        json.dumps(chat(metadata={"x-fleet-deadline": "yesterday"})).encode(),
        json.dumps(chat(service_tier={"a": 1})).encode(),
        json.dumps(chat(stream="yes")).encode(),
        json.dumps(chat(messages=[[[[]]]])).encode(),
    ],
)
def test_a_malformed_body_is_a_clear_error(http: httpx.Client, body: bytes) -> None:
    for path in (CHAT, "/v1/responses", "/v1/embeddings", "/v1/moderations"):
        answer = http.post(path, content=body)
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "field",
    [
        "tenant_id",
        "lane",
        "priority",
        "schema_version",
        "extra_body",
        "extra_headers",
        "metadata_x",
    ],
)
def test_a_body_sets_no_field_of_the_fleet(http: httpx.Client, field: str) -> None:
    if field == "metadata_x":
        answer = http.post(CHAT, json=chat(metadata={"x-fleet-tenant-id": "beta"}))
    else:
        answer = http.post(CHAT, json=chat(**{field: "beta"}))
    assert answer.status_code == 400
    assert field.replace("metadata_x", "tenant-id") in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "header", ["x-fleet-tenant", "x-fleet-tenant-id", "x-fleet-schema-version", "x-fleet-return"]
)
def test_no_header_chooses_a_tenant(http: httpx.Client, header: str) -> None:
    assert http.post(CHAT, json=chat(), headers={header: "beta"}).status_code == 400


PRIVATE_URLS = [
    "http://127.0.0.1/x.png",
    "http://localhost:8700/metrics",
    "http://LOCALHOST/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://127.1/",
    "http://0/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://[fd00:ec2::254]/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://redis:6379/",
    "http://user@127.0.0.1/",
    " http://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://example.com/x",
    "HTTP://127.0.0.1/",
    "http:127.0.0.1/",
    "//127.0.0.1/",
    "",
]


@pytest.mark.parametrize("dollars", ["1e999990", "1e30", "Infinity", "NaN", "-1", "0"])
def test_a_limit_of_the_cost_that_is_no_amount_is_refused_at_once(
    http: httpx.Client, dollars: str
) -> None:
    """To write 1e999990 as a whole number takes half a minute, in which no call is answered."""
    headers = {"x-fleet-max-cost-usd": dollars}
    refused = http.post(CHAT, json=chat(max_tokens=5), headers=headers, timeout=10)
    assert refused.status_code == 400
    assert "x-fleet-max-cost-usd" in refused.json()["error"]["message"]


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_a_private_url_is_refused_wherever_it_stands(http: httpx.Client, url: str) -> None:
    parts: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [_user({"type": "image_url", "image_url": {"url": url}})]}),
        (CHAT, {"messages": [_user({"type": "image_url", "image_url": url})]}),
        (CHAT, {"messages": [_user({"type": "video_url", "video_url": {"url": url}})]}),
        ("/v1/responses", {"input": [_user({"type": "input_image", "image_url": url})]}),
        ("/v1/responses", {"input": [_user({"type": "input_file", "file_url": url})]}),
        ("/v1/moderations", {"input": [{"type": "image_url", "image_url": {"url": url}}]}),
    ]
    for path, body in parts:
        answer = http.post(path, json={"model": "m", **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_url", path


def _user(part: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    "head",
    [
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\nX-A: b\nX-C: d\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\nX A: b\r\n",
        "POST {} HTTP/1.1\r\nHost: x\r\n\x00: b\r\n",
        "POST {} HTTP/9.9\r\nHost: x\r\n",
        "{}\r\n",
        "GET /" + "a" * 200_000 + " HTTP/1.1\r\nHost: x\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n" + "".join(f"X-{i}: {'y' * 100}\r\n" for i in range(2000)),
    ],
)
def test_a_malformed_head_is_refused(attacked: ApiServer, http: httpx.Client, head: str) -> None:
    answer = _raw(attacked, head.replace("{}", CHAT), body=b"0\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4",))
    assert answer.count(b"HTTP/1.1") <= 1


def test_a_client_that_sends_its_head_slowly_is_cut_off(
    attacked: ApiServer, http: httpx.Client
) -> None:
    assert _seconds_until_closed(attacked, b"GET /healthz HTTP/1.1\r\nX-A: ", b"b") < 10


def test_a_client_that_sends_nothing_is_cut_off(attacked: ApiServer, http: httpx.Client) -> None:
    assert _seconds_until_closed(attacked, b"", b"") < 10


def test_a_client_that_sends_its_second_head_slowly_is_cut_off(
    attacked: ApiServer, http: httpx.Client
) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert _seconds_until_closed(attacked, first + b"GET /hea", b"l", answers=1) < 10


def test_a_client_that_sends_its_body_slowly_is_cut_off(
    attacked: ApiServer, http: httpx.Client
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALPHA}\r\n"
    head += "Content-Length: 100000\r\n\r\n"
    assert _seconds_until_closed(attacked, head.encode(), b" ", answers=1) < 10


def test_too_many_connections_are_refused_and_the_rest_goes_on(
    attacked: ApiServer, http: httpx.Client
) -> None:
    http.get("/healthz")  # this client's connection is open before
    held = [socket.create_connection(("127.0.0.1", attacked.port)) for _ in range(120)]
    try:
        answer = _raw(attacked, "GET /healthz HTTP/1.1\r\nHost: x\r\n")
        assert answer.startswith(b"HTTP/1.1 503")
    finally:
        for one in held:
            one.close()
    eventually(lambda: http.get("/healthz").status_code == 200)


def test_a_model_beyond_the_keys_scope_is_told_no_other_names(attacked: ApiServer) -> None:
    headers = {"authorization": f"Bearer {NARROW}"}
    answer = httpx.post(attacked.root + CHAT, headers=headers, json=chat())
    assert answer.status_code == 403
    assert "gpt" not in answer.text


def test_a_server_that_is_told_to_stop_ends_as_a_success(valkey_url: str, tmp_path: Path) -> None:
    with api_server(valkey_url, tmp_path, None) as server:
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_key_that_is_removed_from_the_file_is_refused_by_the_running_server(
    valkey_url: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "fleet.yaml")
    with api_server(valkey_url, tmp_path, config, "--no-batches") as server:
        headers = {"authorization": f"Bearer {READER}"}

        def status() -> int:
            return httpx.get(f"{server.root}/metrics", headers=headers).status_code

        assert status() == 200
        write_config(config, keys=[key for key in KEYS if key["name"] != "reader"])
        eventually(lambda: status() == 401)


def test_without_keys_other_machines_are_not_served(valkey_url: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "fleet.yaml", keys=[])
    refused = subprocess.run(
        [sys.executable, "-m", "api", "serve", "--host", "0.0.0.0", "--port", "0"],
        env=os.environ | {"FLEET_REDIS_URL": valkey_url, "FLEET_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "fleet key" in refused.stderr


def _raw(server: ApiServer, head: str, body: bytes = b"") -> bytes:
    """Send bytes and return all that the server answers within PATIENCE_SECONDS."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as one:
        with suppress(OSError):
            one.sendall(head.encode("latin-1") + b"Connection: close\r\n\r\n" + body)
        parts = []
        try:
            while part := one.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def _seconds_until_closed(server: ApiServer, start: bytes, drop: bytes, answers: int = 0) -> float:
    """Send a byte now and then, as a client that wants to hold its connection."""
    started_at = time.monotonic()
    seen = b""
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(start)
        one.settimeout(0.1)
        while time.monotonic() - started_at < PATIENCE_SECONDS:
            try:
                if not (part := one.recv(65536)):
                    break
                seen += part
            except TimeoutError:
                pass
            except OSError:
                break
            try:
                one.sendall(drop)
            except OSError:
                break
    assert seen.count(b"HTTP/1.1 ") == answers
    return time.monotonic() - started_at
