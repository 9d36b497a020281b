"""A whole fleet on a Redis with TLS and a password, of which nothing is shown or left readable."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from tests.acceptance.conftest import Up, running
from tests.support.certificates import Authority, Certificate
from tests.support.redis_server import DURABLE, redis_server
from tests.support.tls_relay import TLSRelay, tls_relay
from tests.support.workers import eventually

PASSWORD = "hunter2hunter2"
LANES: dict[Lane, str] = {
    "realtime": "gpt-4o-mini",
    "local": "smollm2-135m",
    "batch": "gpt-4o-mini",
}


class Secured(NamedTuple):
    up: Up
    relay: TLSRelay
    good: Certificate
    forged: Certificate


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    (folder / "other").mkdir()
    authority = Authority(folder)
    good, forged = authority.issue("127.0.0.1"), Authority(folder / "other").issue("127.0.0.1")
    with (
        redis_server(folder / "redis", DURABLE | {"requirepass": PASSWORD}) as behind,
        tls_relay(behind.port, good) as relay,
        pytest.MonkeyPatch.context() as patch,
    ):
        # The authorities that the system trusts, so that the URL needs no options.
        patch.setenv("SSL_CERT_FILE", str(authority.file))
        url = f"rediss://:{PASSWORD}@127.0.0.1:{relay.port}/0"
        (folder / "data").mkdir(mode=0o755)
        with running(folder / "data", FLEET_REDIS_URL=url) as up:
            yield Secured(up, relay, good, forged)


def answer_on_each_lane(url: str) -> None:
    with Fleet(url) as fleet:
        tickets = fleet.submit_many(
            CompletionRequest(model=model, lane=lane, messages=[{"role": "user", "content": "Hi"}])
            for lane, model in LANES.items()
        )
        assert [fleet.result(ticket, timeout=60).receipt.lane for ticket in tickets] == [*LANES]


def command(*arguments: str) -> str:
    env = {"FLEET_DATA_DIR": os.devnull}
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout + result.stderr


def test_each_process_of_a_fleet_takes_the_bare_tls_url(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = secured.up
    answer_on_each_lane(up.url)
    monkeypatch.setenv("FLEET_REDIS_URL", up.url)
    shown = {
        "log": up.log(),
        "status": command("scheduler", "batches"),
        "costs": command("scheduler", "costs"),
        "configuration": command("celery", "-A", "tasks.app", "inspect", "conf"),
        "statistics": command("celery", "-A", "tasks.app", "inspect", "stats"),
        "report": command("celery", "-A", "tasks.app", "report"),
    }
    with urllib.request.urlopen(up.addresses["flower"] + "/broker") as page:
        shown["Flower's queues"] = page.read().decode()
    with urllib.request.urlopen(up.addresses["flower"] + "/workers") as page:
        shown["Flower's workers"] = page.read().decode()
    assert "realtime-1@" in shown["statistics"]
    assert "Unable to get queues" not in shown["log"]
    assert [name for name, text in shown.items() if PASSWORD in text] == []
    assert secured.relay.plain == 0


def test_a_fleet_sends_nothing_to_a_forged_server_and_goes_on_with_the_true_one(
    secured: Secured,
) -> None:
    secured.relay.present(secured.forged)
    # Each worker, beat and Flower have tried, most of them with several connections.
    eventually(lambda: secured.relay.refused > 30, timeout=30)
    assert (secured.relay.received, secured.relay.plain) == (0, 0)
    secured.relay.present(secured.good)
    answer_on_each_lane(secured.up.url)
    assert PASSWORD not in secured.up.log()


def test_only_its_user_can_read_what_a_fleet_writes(secured: Secured) -> None:
    folder = secured.up.folder
    paths = [folder, *(path for path in folder.rglob("*") if path != folder / "log")]
    assert {"supervisord.conf", "addresses.yaml", "wait_ready.yaml"} <= {p.name for p in paths}
    assert [str(path) for path in paths if readable_by_others(path)] == []


def readable_by_others(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & 0o077)
