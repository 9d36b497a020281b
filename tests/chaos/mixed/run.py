"""A run: start everything, strike, let it settle, and draw up the account."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import yaml

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, errors
from scheduler.store.keys import REQUESTS
from tests.bench.processes import wait_for
from tests.chaos.mixed.account import Account, Events, Rest
from tests.chaos.mixed.faults import FAULTS, Fault, Site, Storm
from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.network import Network
from tests.chaos.mixed.processes import Process, Role, Starter, Supervisor
from tests.chaos.mixed.settings import (
    HOSTED,
    OWN,
    PROFILE,
    TENANTS,
    fleet_config,
    worker_env,
)
from tests.chaos.mixed.workload import FOLLOW_UPS, QUEUES
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from workers.runtime.dead_letters import DEAD_LETTERS

#: Seconds for the first answer of each lane, and for the last results after the last fault.
START_SECONDS, SETTLE_SECONDS = 120.0, 90.0
POLL_SECONDS = 0.5
#: The files of Redis are copied while it writes them, so none may be replaced.
SERVER_OPTIONS = {**DURABLE, "auto-aof-rewrite-percentage": "0"}


def roles(seed: int, threads: int) -> list[Role]:
    """The roles of a fleet with two workers of each lane."""

    def worker(name: str, app: str) -> Role:
        command = ("celery", "-A", app, "worker", "-n", "{name}@chaos", "-l", "INFO")
        return Role(name, command, 2)

    return [
        worker("realtime", "workers.realtime.app"),
        worker("local", "tests.chaos.mixed.local_app"),
        worker("batch", "scheduler.app"),
        Role("beat", ("celery", "-A", "scheduler.beat", "beat", "-l", "INFO")),
        Role("producer", ("tests.chaos.mixed.producer", str(seed), str(threads)), 2),
    ]


@dataclass(frozen=True)
class Plan:
    """How much a run does."""

    seed: int
    faults: int
    seconds: float
    #: Mean seconds between two faults.
    interval: float = 0.7
    #: Requests at once of each of the two producers.
    threads: int = 24


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    account: Account
    faults: Counter[str]
    missed: Counter[str]
    seconds: float
    harness_errors: list[str]


class Run:
    """A fleet under faults."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._journal = Journal(folder / "harness.jsonl")

    def execute(self, faults: tuple[type[Fault], ...] = FAULTS) -> Outcome:
        """Run, and return the account."""
        with ExitStack() as stack:
            provider = stack.enter_context(self._provider())
            server = stack.enter_context(redis_server(self._folder / "redis", SERVER_OPTIONS))
            network = stack.enter_context(Network(server.port))
            supervisor = stack.enter_context(self._fleet(server, network, provider))
            self._wait_for_answers(server)
            supervisor.add(*self._producers)
            numbers = random.Random(self._plan.seed)  # noqa: S311 - a test's numbers
            site = Site(supervisor, server, self._folder, self._journal, numbers, network)
            storm = Storm(site, faults, self._plan.interval)
            started = time.monotonic()
            storm.rage(self._plan.seconds, self._plan.faults)
            seconds = time.monotonic() - started
            supervisor.let_end("producer")
            (self._folder / "stop").touch()
            account = self._settle(server, supervisor)
        events = Events(self._folder).harness
        struck = Counter(e["name"] for e in events if e["event"] == "fault")
        missed = Counter(e["name"] for e in events if e["event"] == "missed")
        return Outcome(account, struck, missed, seconds, storm.errors)

    @contextmanager
    def _provider(self) -> Iterator[str]:
        """Start the provider; yield its URL."""
        profile, log = self._folder / "profile.json", self._folder / "provider.log"
        seeded = PROFILE.model_copy(update={"seed": self._plan.seed})
        profile.write_text(seeded.model_dump_json())
        journal = self._folder / "provider.jsonl"
        command = ["-m", "tests.chaos.mixed.provider", str(profile), str(journal)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            yield wait_for("listening on", log).split()[-1]
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def _fleet(self, server: RedisServer, network: Network, provider: str) -> Iterator[Supervisor]:
        """Start the fleet; the second process of each role reaches Redis by the network."""
        (self._folder / "fleet.yaml").write_text(yaml.safe_dump(fleet_config()))
        urls = (server.url, f"redis://127.0.0.1:{network.port}/0")
        envs = [worker_env(str(self._folder), url, provider) for url in urls]
        starter = Starter(self._folder)
        processes = [
            Process(role, number, starter, envs[number - 1])
            for role in roles(self._plan.seed, self._plan.threads)
            for number in range(1, role.count + 1)
        ]
        self._producers = [one for one in processes if one.role.name == "producer"]
        fleet = [one for one in processes if one.role.name != "producer"]
        supervisor = Supervisor(fleet, self._journal)
        supervisor.start()
        try:
            yield supervisor
        finally:
            supervisor.stop()
            starter.close()

    def _wait_for_answers(self, server: RedisServer) -> None:
        """Return when each lane has answered a request."""
        deadline = time.monotonic() + START_SECONDS
        with Fleet(server.url) as fleet:
            for lane in QUEUES:
                model = OWN if lane == "local" else HOSTED
                message = {"role": "user", "content": f"<start-{lane}> hello"}
                request = CompletionRequest(
                    model=model, messages=[message], lane=lane, max_completion_tokens=20
                )
                while True:
                    try:
                        fleet.result(fleet.submit(request), deadline - time.monotonic())
                    except (errors.NoCatalogue, errors.FleetBusy):
                        time.sleep(POLL_SECONDS)
                    except errors.ProviderError:
                        continue  # one of the provider's faults
                    else:
                        break

    def _settle(self, server: RedisServer, supervisor: Supervisor) -> Account:
        """Wait until nothing is left to do, and draw up the account."""
        for process in supervisor.processes:
            process.send(signal.SIGCONT)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            account = self._account(server)
            if not account.is_open() or time.monotonic() > deadline:
                return account
            time.sleep(POLL_SECONDS)

    def _account(self, server: RedisServer) -> Account:
        events = Events(self._folder)
        with Fleet(server.url) as fleet, server.client() as client:
            for one in events.requests.values():
                if one.task_id:
                    read_stored(client, fleet, one)
            return Account(events, read_rest(client, fleet))


def read_stored(client: redis.Redis, fleet: Fleet, one: Any) -> None:
    """Read the stored outcome of a request, and its receipt."""
    if fleet.status(one.task_id) not in ("SUCCESS", "FAILURE", "REVOKED"):
        return
    try:
        completion = fleet.result(one.task_id, 5)
    except errors.RequestFailed as error:
        one.final, one.text = type(error).__name__, str(error)
        return
    one.final = "ok"
    one.answer_id = completion.body.get("id")
    one.receipt_nanousd = completion.receipt.cost_nanousd


def read_rest(client: redis.Redis, fleet: Fleet) -> Rest:
    """Read what is left in Redis."""
    budgets = [fleet.budget(name).month for name in TENANTS]
    return Rest(
        leases=int(client.hlen("fleet:leases")),
        reserved_nanousd=sum(one.reserved_nanousd for one in budgets),
        spent_nanousd=sum(one.spent_nanousd for one in budgets),
        dead_letters=int(client.llen(DEAD_LETTERS)),
        waiting=sum(waiting(client, queue) for queue in QUEUES.values()),
        parked=int(client.hlen(REQUESTS)),
        follow_ups=follow_ups(client),
    )


def waiting(client: redis.Redis, queue: str) -> int:
    """Count the messages of a queue, of all its priorities and tenants."""
    found = 0
    for key in client.scan_iter(f"*{queue}*", count=1000):
        if client.type(key) == "list" and queue in key:
            found += int(client.llen(key))
    return found


def follow_ups(client: redis.Redis) -> Counter[tuple[str, str]]:
    """Count the follow-ups that wait, by their name and their marker."""
    counts: Counter[tuple[str, str]] = Counter()
    for key in client.scan_iter(f"{FOLLOW_UPS}*", count=1000):
        texts: Any = client.lrange(key, 0, -1)
        for text in texts:
            message = json.loads(text)
            ((marker,), *_) = json.loads(b64decode(message["body"]))
            counts[message["headers"]["task"], marker] += 1
    return counts
