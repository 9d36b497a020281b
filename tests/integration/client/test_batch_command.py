"""`fleet batch` where the fleet does not take or answer everything at once."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import redis

from primarch_fleet import Fleet
from primarch_fleet.catalogue import LaneLimits, Limits
from primarch_fleet.errors import Cancelled
from tests.support.batch_file import run_batch
from tests.support.lane_limits import publish
from tests.support.producer import finish, messages
from tests.support.redis_server import RedisServer
from tests.support.workers import eventually

LINES = 12
#: The list of the realtime queue's messages of low priority, as the command sends them.
QUEUE = "realtime\x06\x166"


def write(folder: Path, count: int = LINES, **body: Any) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "2+2?"}],
        "max_tokens": 10,
        **body,
    }
    with (folder / "in.jsonl").open("w") as file:
        for number in range(count):
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")


def batch(url: str, folder: Path, *options: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return run_batch(url, folder, "--lane", "realtime", *options)


def serve(store: redis.Redis, fleet: Fleet) -> int:
    """Answer each request that waits, as a worker does; return their number."""
    served = 0
    while text := store.rpop(QUEUE):
        task_id = json.loads(str(text))["headers"]["id"]
        if fleet.status(task_id) == "PENDING":
            finish(fleet, task_id)
        served += 1
    return served


def answered(folder: Path) -> list[str]:
    lines = (folder / "out.jsonl").read_text().splitlines()
    return sorted((json.loads(line)["custom_id"] for line in lines), key=int)


def test_a_full_lane_and_a_small_window_make_the_run_wait(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=5, retry_after=0.1)})
    write(tmp_path)
    most = 0
    with Fleet(valkey_url) as fleet, batch(valkey_url, tmp_path, "--window", "8") as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            most = max(most, serve(store, fleet))
        assert process.wait(1) == 0, process.communicate()[1]
    assert answered(tmp_path) == [str(number) for number in range(LINES)]
    assert 0 < most <= 5
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_budget_without_room_ends_the_run_and_a_later_run_continues(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    some_requests = 300_000  # nano-dollars
    publish(store, tenants={"default": Limits(daily_budget_nanousd=some_requests)})
    write(tmp_path)
    with Fleet(valkey_url) as fleet:
        with batch(valkey_url, tmp_path) as process:
            eventually(lambda: serve(store, fleet))
            eventually(lambda: serve(store, fleet) < 0 or process.poll() is not None, 60)
            _, err = process.communicate()
        assert process.returncode == 1
        assert "the same command again" in err
        first = len(answered(tmp_path))
        assert 0 < first < LINES
        assert not (tmp_path / "out.errors.jsonl").exists()
        publish(store)
        with batch(valkey_url, tmp_path) as process:
            eventually(lambda: serve(store, fleet) < 0 or process.poll() is not None)
    assert process.returncode == 0
    assert answered(tmp_path) == [str(number) for number in range(LINES)]


def test_the_error_of_a_line_names_its_field_without_a_place_in_a_list(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    publish(store)
    write(tmp_path, 3, model="unknown")
    with batch(valkey_url, tmp_path) as process:
        process.wait(60)
    lines = (tmp_path / "out.errors.jsonl").read_text().splitlines()
    messages = [json.loads(line)["error"]["message"] for line in lines]
    assert len(messages) == 3
    assert all(message.startswith("model: ") for message in messages), messages


def test_a_run_survives_a_restart_of_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.options["appendfsync"] = "always"
    server.start()
    try:
        write(tmp_path)
        with server.client() as store, Fleet(server.url) as fleet:
            publish(store)
            with batch(server.url, tmp_path) as process:
                eventually(lambda: len(messages(store)) == LINES)
                server.kill()
                time.sleep(1.5)  # the run finds that out
                assert process.poll() is None
                server.start()
                serve(store, fleet)
                assert process.wait(30) == 0
    finally:
        server.kill()
    assert answered(tmp_path) == [str(number) for number in range(LINES)]


def test_ctrl_c_says_how_to_continue_and_a_failed_request_is_an_error_line(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    publish(store)
    write(tmp_path)
    with Fleet(valkey_url) as fleet:
        with batch(valkey_url, tmp_path) as process:
            eventually(lambda: len(messages(store)) == LINES)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert f"stopped; {LINES} requests stay in the fleet; run the same command again" in err
        failed = messages(store)[0]["headers"]["id"]
        finish(fleet, failed, Cancelled("cancelled by its tenant"), "FAILURE")
        serve(store, fleet)
        with batch(valkey_url, tmp_path, "--json") as process:
            out, err = process.communicate(timeout=30)
        assert process.returncode == 1, err
        assert json.loads(out)["asked_before"] == LINES
        (error,) = (tmp_path / "out.errors.jsonl").read_text().splitlines()
        assert json.loads(error)["error"]["code"] == "cancelled"
        assert len(answered(tmp_path)) == LINES - 1
        assert messages(store) == []
        with batch(valkey_url, tmp_path, "--run", "again") as process:
            eventually(lambda: serve(store, fleet) == 1)
            assert process.wait(30) == 0
    assert answered(tmp_path) == [str(number) for number in range(LINES)]
