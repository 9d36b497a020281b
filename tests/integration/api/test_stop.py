"""What callers get from a server that stops, and when a stream stands still."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis

from primarch_fleet import Fleet
from primarch_fleet.outgoing import OPEN_KEY
from tests.integration.api.conftest import Served
from tests.support.api_server import ApiServer, api_server, fleet_yaml
from tests.support.fork_server import run_forked
from tests.support.workers import eventually
from workers.onebox.simulator.script import Script

ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello."}]}
#: More than cancels that run at the same time.
WAITING_CALLS = 30
#: A stream that takes a minute.
COUNTING = Script(
    chunks=tuple({"choices": [{"index": 0, "delta": {"content": f"{n} "}}]} for n in range(600)),
    pause=0.1,
)


@pytest.fixture
def other(valkey_url: str, tmp_path: Path, served: Served) -> Iterator[ApiServer]:
    """Another server of the same fleet, whose calls have a second to end."""
    served.simulator.reset()
    with api_server(valkey_url, tmp_path, served.config, FLEET_DRAIN_TIMEOUT="1") as server:
        yield server


def test_a_call_that_outlasts_its_server_gets_503_and_its_request_is_cancelled(
    other: ApiServer, served: Served, valkey_url: str
) -> None:
    error = stopped_while_it_waits(other, served, {}, seconds=60)
    assert (error.status_code, error.code) == (503, "server_stops")
    assert error.response.headers["x-should-retry"] == "true"
    assert other.process.wait(20) == 0
    assert "Traceback" not in other.log.read_text()
    with Fleet(valkey_url) as fleet:
        eventually(lambda: fleet.budget("alpha").day.reserved_nanousd == 0)


def test_many_streams_and_calls_that_outlast_their_server_are_all_cancelled(
    other: ApiServer, served: Served, valkey_url: str
) -> None:
    served.simulator.script(COUNTING)
    with (
        other.client() as client,
        Fleet(valkey_url) as fleet,
        redis.Redis.from_url(valkey_url) as store,
        ThreadPoolExecutor(WAITING_CALLS) as threads,
    ):
        create: Any = partial(client.chat.completions.create, **ASK)
        streams = [create(stream=True) for _ in range(8)]
        for stream in streams:
            next(stream)
        served.simulator.reset()
        served.simulator.script(Script(delay=60))
        waiting = [threads.submit(create) for _ in range(WAITING_CALLS)]
        eventually(lambda: store.zcard(OPEN_KEY) == len(streams) + WAITING_CALLS, timeout=20)
        other.process.terminate()
        for stream in streams:
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(stream)
        assert {getattr(call.exception(30), "code", None) for call in waiting} == {"server_stops"}
        assert other.process.wait(20) == 0
        assert fleet.budget("alpha").day.reserved_nanousd == 0
    log = other.log.read_text()
    assert "Traceback" not in log
    assert "not cancelled" not in log


def test_another_server_answers_the_call_that_is_repeated_with_its_key(
    other: ApiServer, served: Served
) -> None:
    headers = {"Idempotency-Key": "over-a-stop"}
    error = stopped_while_it_waits(other, served, headers, seconds=5)
    assert error.code == "server_stops"
    with served.client() as client:
        answer = client.chat.completions.create(**ASK, extra_headers=headers)
    assert answer.choices[0].message.content
    assert len(served.calls()) == 1


def test_a_stream_that_stands_still_ends_with_an_error_and_its_request_is_cancelled(
    served: Served, valkey_url: str, tmp_path: Path
) -> None:
    served.simulator.reset()
    served.simulator.script(COUNTING)
    config = fleet_yaml(tmp_path / "fleet.yaml", answer_timeout=2.0)
    with api_server(valkey_url, tmp_path, config) as server, server.client() as client:
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        served.worker.signal(signal.SIGSTOP)
        try:
            with pytest.raises(openai.APIError) as caught:
                list(stream)
        finally:
            served.worker.signal(signal.SIGCONT)
    assert caught.value.code == "result_timeout"
    with Fleet(valkey_url) as fleet:
        eventually(lambda: fleet.budget("alpha").day.reserved_nanousd == 0, timeout=30)


def stopped_while_it_waits(
    server: ApiServer, served: Served, headers: dict[str, str], seconds: float
) -> openai.APIStatusError:
    """The error of a call whose server is told to stop; the provider's answer takes `seconds`."""
    served.simulator.script(Script(delay=seconds))
    with server.client() as client, ThreadPoolExecutor(1) as threads:
        create = partial(client.chat.completions.create, **ASK, extra_headers=headers)
        call = threads.submit(create)
        eventually(served.calls)
        server.process.terminate()
        error = call.exception(30)
    assert isinstance(error, openai.APIStatusError)
    return error


def test_a_server_whose_port_is_taken_ends_with_one_line_before_it_starts(
    valkey_url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {"FLEET_REDIS_URL": valkey_url, "FLEET_DATA_DIR": str(tmp_path)}
        ended = run_forked(["api", "serve", "--port", port], os.environ | env)
    assert ended.returncode == 1
    assert ended.stderr == f"serve: cannot listen at 127.0.0.1:{port}: the port is taken\n"
