"""A fleet on a Redis with TLS and users: nothing secret is shown, sent or left readable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import redis
from celery import Celery

from config import acl
from config.fleet import load
from config.settings import ROOT, Settings
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, SCHEDULER_QUEUE, Lane
from primarch_fleet.errors import UnknownRequest
from tests.acceptance.conftest import running
from tests.support.certificates import Authority, Certificate
from tests.support.flower import ask_flower
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.tls_relay import TLSRelay, tls_relay
from tests.support.workers import eventually
from workers.onebox.options import Options
from workers.onebox.processes import Process
from workers.onebox.up import Plan

PASSWORD = "hunter2hunter2"
LANES: dict[Lane, str] = {
    "realtime": "gpt-4o-mini",
    "local": "smollm2-135m",
    "batch": "gpt-4o-mini",
}
#: The user of a process, by the first part of its name.
USERS = {"realtime": "worker", "local": "worker", "batch": "scheduler"}
#: What a producer tries before it does without: to reserve money, to see how old messages are, to
#: see which tasks run, and to delete the result of a call of the scheduler.
TRIED = {("producer", "key"), ("producer", "command")}


class Secured(NamedTuple):
    """A running fleet."""

    relay: TLSRelay
    good: Certificate
    forged: Certificate
    urls: dict[str, str]
    env: dict[str, str]
    addresses: dict[str, str]
    log: Path
    server: RedisServer

    @property
    def flower_login(self) -> str:
        return (Path(self.env["FLEET_DATA_DIR"]) / "flower-login").read_text().strip()

    def command(self, user: str, *arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=self.env | {"FLEET_REDIS_URL": self.urls[user]},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return result.stdout + result.stderr

    def refused(self) -> set[tuple[str, str, str, str]]:
        """What the users were not permitted: user, reason, context and object."""
        with redis.Redis(
            port=self.server.port,
            username="admin",
            password=password(self.urls["admin"]),
            decode_responses=True,
        ) as admin:
            fields = ("username", "reason", "context", "object")
            return {tuple(entry[field] for field in fields) for entry in admin.acl_log()}


def password(url: str) -> str:
    return url.partition("://")[2].partition("@")[0].partition(":")[2]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    (folder / "other").mkdir()
    authority = Authority(folder)
    good, forged = authority.issue("127.0.0.1"), Authority(folder / "other").issue("127.0.0.1")
    config = load(ROOT / "config" / "fleet.yaml")
    local = [engine.queue for engine in config.engines]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # The authorities that the system trusts, so that the URLs need no options.
        patch.setenv("SSL_CERT_FILE", str(authority.file))
        server = RedisServer(folder / "redis", DURABLE | {"aclfile": f"{folder}/acl/users.acl"})
        relay = stack.enter_context(tls_relay(server.port, good))
        url = f"rediss://127.0.0.1:{relay.port}/0"
        acl.write(folder / "acl", url, (REALTIME_QUEUE, BATCH_QUEUE, SCHEDULER_QUEUE, *local))
        files = (folder / "acl").glob("*.env")
        urls = {file.stem: file.read_text().strip().partition("=")[2] for file in files}
        server.start()
        stack.callback(server.kill)
        (folder / "data").mkdir()
        machine = Settings(redis_url=urls["operator"], data_dir=folder / "data")
        plan = Plan(Options(1, None, 1, simulate=True), config, machine)
        log = folder / "log"
        env = os.environ | plan.env
        stack.enter_context(processes(plan.processes, env, urls, log))
        found = Secured(relay, good, forged, urls, env, plan.addresses, log, server)
        wait_until_ready(found)
        yield found


def processes(
    planned: list[Process], env: dict[str, str], urls: dict[str, str], log: Path
) -> ExitStack:
    """Run each process with the URL of its user."""
    stack = ExitStack()
    out = stack.enter_context(log.open("wb"))
    for process in planned:
        if process.name == "ready":
            continue
        role = process.name.partition("-")[0]
        user_url = urls.get(USERS.get(role, role), "")
        started = subprocess.Popen(
            process.command,
            cwd=ROOT,
            env=env | process.env | {"FLEET_REDIS_URL": user_url},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        stack.callback(started.wait, 30)
        stack.callback(started.terminate)
    return stack


def wait_until_ready(secured: Secured) -> None:
    with Celery(broker=secured.urls["operator"], set_as_current=False) as app:
        eventually(lambda: len(app.control.ping(timeout=0.5) or []) == len(LANES), 60)

    def flower_answers() -> bool:
        try:
            urllib.request.urlopen(secured.addresses["flower"] + "/healthcheck").close()
        except OSError:
            return False
        return True

    eventually(flower_answers, 60)


def request(on: Lane, **options: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "Hi"}]
    return CompletionRequest.parse({"model": LANES[on], "lane": on, "messages": messages} | options)


def answer_on_each_lane(url: str) -> None:
    with Fleet(url) as fleet:
        tickets = fleet.submit_many(request(lane) for lane in LANES)
        assert [fleet.result(ticket, timeout=60).receipt.lane for ticket in tickets] == [*LANES]


def test_each_user_can_do_what_its_processes_need(secured: Secured) -> None:
    answer_on_each_lane(secured.urls["producer"])
    with Fleet(secured.urls["producer"]) as fleet:
        options = {"lane": "auto", "tenant_id": "acme", "idempotency_key": "a key"}
        keyed = request("realtime", **options)
        first, again = fleet.submit(keyed), fleet.submit(keyed)
        assert first.id == again.id
        assert fleet.result(first, timeout=30).receipt.lane == "realtime"
        assert fleet.status(first) == "SUCCESS"
        assert fleet.progress([first]).done == 1
        assert [*fleet.stream(request("realtime", stream=True))]
        assert fleet.cancel(fleet.submit(request("batch")), timeout=30)
        with pytest.raises(UnknownRequest):
            fleet.cancel("nope", timeout=30)
    secured.command("operator", "scheduler", "batches")
    secured.command("operator", "scheduler", "drain", "--no-wait")
    secured.command("operator", "scheduler", "resume")
    page = ask_flower(secured.addresses["flower"], secured.flower_login, "/task/nope")
    assert "Unknown task" in page  # after a search of the queues
    shown = ask_flower(secured.addresses["flower"], secured.flower_login, "/metrics")
    for name in (
        *("queue_depth", "queue_workers", "dead_letters_kept", "batch_parked_requests"),
        *("batch_oldest_wait_seconds", "redis_memory_bytes", "redis_warning"),
        "redis_certificate_expiry_timestamp_seconds",
    ):
        assert re.search(rf"^primarch_{name}({{.*}})? [0-9.e+]+$", shown, re.MULTILINE)
    assert {entry[:2] for entry in secured.refused()} <= TRIED, secured.refused()


def test_no_password_is_shown(secured: Secured) -> None:
    flower = secured.addresses["flower"]
    shown = {"log": secured.log.read_text()}
    for command in ("inspect conf", "inspect stats", "report"):
        arguments = ("celery", "-A", "tasks.app", *command.split())
        shown[command] = secured.command("operator", *arguments)
    login = secured.flower_login
    for page in ("/broker", "/workers"):
        shown[page] = ask_flower(flower, login, page)
    assert "/0" in shown["/broker"]
    assert "realtime-1@" in shown["inspect stats"]
    assert "Unable to get queues" not in shown["log"]
    passwords = [password(url) for url in secured.urls.values()]
    leaks = {name for name, text in shown.items() for each in passwords if each in text}
    assert leaks == set()
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any(login.partition(":")[2] in " ".join(command) for command in commands)
    assert secured.relay.plain == 0


def test_a_fleet_sends_nothing_to_a_forged_server_and_continues_with_the_true_one(
    secured: Secured,
) -> None:
    secured.relay.present(secured.forged)
    # Each worker, beat and Flower have tried, most of them with several connections.
    eventually(lambda: secured.relay.refused > 30, timeout=30)
    assert (secured.relay.received, secured.relay.plain) == (0, 0)
    secured.relay.present(secured.good)
    answer_on_each_lane(secured.urls["producer"])


def test_only_its_user_can_read_what_make_up_writes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    with redis_server(tmp_path / "redis", DURABLE | {"requirepass": PASSWORD}) as server:
        url = server.url.replace("://", f"://:{PASSWORD}@")
        options = ("--realtime", "0", "--local", "0", "--batch", "0")
        with running(folder, *options, FLEET_REDIS_URL=url) as up:
            assert up.url == url
            shown = f"redis://:***@127.0.0.1:{server.port}/0"
            eventually(lambda: shown in up.log())
            assert PASSWORD not in up.log()
            paths = [folder, *(path for path in folder.rglob("*") if path != folder / "log")]
            written = {path.name: path.stat().st_mode & 0o777 for path in paths}
    assert {"supervisord.conf", "addresses.yaml", "wait_ready.yaml"} <= written.keys()
    assert {name for name, mode in written.items() if mode & 0o077} == set()
