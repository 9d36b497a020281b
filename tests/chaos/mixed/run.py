"""A run: start everything, strike, let it settle, and draw up the account."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import redis

from config.settings import ROOT
from tests.bench.processes import wait_for
from tests.chaos.mixed.account import Account, Events, Request, Rest
from tests.chaos.mixed.faults import FAULTS, Fault, SetClock, Site, Storm
from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.network import Network
from tests.chaos.mixed.processes import Process, Role, Starter, Supervisor
from tests.chaos.mixed.settings import PROFILE
from tests.support.redis_server import DURABLE, RedisServer, redis_server

#: Seconds for the first answer of each lane, and for the last results after the last fault: a sweep
#: of reservations finds those of lost requests within 90 s.
START_SECONDS, SETTLE_SECONDS = 120.0, 130.0
POLL_SECONDS = 0.5
#: The files of Redis are copied while it writes them, so none may be replaced.
SERVER_OPTIONS = {**DURABLE, "auto-aof-rewrite-percentage": "0"}


class Side(Protocol):
    """What is tried: the fleet, or stock Celery."""

    name: str

    def roles(self, seed: int, threads: int) -> list[Role]:
        """The processes: producers last, which start when the others answer."""
        ...

    def env(self, url: str, provider: str) -> dict[str, str]:
        """The environment of each process."""
        ...

    def wait_for_answers(self, url: str, deadline: float) -> None:
        """Return when requests are answered."""
        ...

    def read(self, client: redis.Redis, url: str, requests: list[Request]) -> Rest:
        """Read the stored outcomes into the requests, and return what else is left."""
        ...


@dataclass(frozen=True)
class Plan:
    """How much a run does."""

    seed: int
    faults: int
    seconds: float
    #: Mean seconds between two faults.
    interval: float = 0.4
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

    @property
    def is_wrong(self) -> bool:
        """Whether a promise was broken, or the harness itself."""
        return bool(self.account.problems() or self.harness_errors)


class Run:
    """One side under faults."""

    def __init__(self, plan: Plan, side: Side, folder: Path) -> None:
        self._plan, self._side, self._folder = plan, side, folder
        self._journal = Journal(folder / "harness.jsonl")

    def execute(self, faults: tuple[type[Fault], ...] = FAULTS) -> Outcome:
        """Run, and return the account."""
        with ExitStack() as stack:
            provider = stack.enter_context(self._provider())
            server = stack.enter_context(redis_server(self._folder / "redis", SERVER_OPTIONS))
            network = stack.enter_context(Network(server.port))
            supervisor = stack.enter_context(self._processes(server, network, provider))
            self._side.wait_for_answers(server.url, time.monotonic() + START_SECONDS)
            supervisor.add(*self._producers)
            numbers = random.Random(self._plan.seed)  # noqa: S311 - a test's numbers
            site = Site(supervisor, server, self._folder, self._journal, numbers, network)
            storm = Storm(site, self._possible(faults), self._plan.interval)
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

    def _possible(self, faults: tuple[type[Fault], ...]) -> tuple[type[Fault], ...]:
        """Leave out what this machine cannot do."""
        if self._has_clocks:
            return faults
        print("no C compiler (cc): no wall clock is set")
        return tuple(fault for fault in faults if fault is not SetClock)

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
    def _processes(
        self, server: RedisServer, network: Network, provider: str
    ) -> Iterator[Supervisor]:
        """Start the side; the second process of each role reaches Redis by the network."""
        urls = (server.url, f"redis://127.0.0.1:{network.port}/0")
        envs = [self._side.env(url, provider) for url in urls]
        starter = Starter(self._folder)
        self._has_clocks = starter.has_clocks
        processes = [
            Process(role, number, starter, envs[number - 1])
            for role in self._side.roles(self._plan.seed, self._plan.threads)
            for number in range(1, role.count + 1)
        ]
        self._producers = [one for one in processes if one.role.name == "producer"]
        others = [one for one in processes if one.role.name != "producer"]
        supervisor = Supervisor(others, self._journal)
        supervisor.start()
        try:
            yield supervisor
        finally:
            supervisor.stop()
            starter.close()

    def _settle(self, server: RedisServer, supervisor: Supervisor) -> Account:
        """Wait until nothing is left to do, and draw up the account."""
        for process in supervisor.processes:
            process.send(signal.SIGCONT)
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and any(one.status is None for one in self._producers):
            time.sleep(POLL_SECONDS)
        events = Events(self._folder)
        while self._account(server, events).is_open() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self._account(server, Events(self._folder))

    def _account(self, server: RedisServer, events: Events) -> Account:
        open_requests = [one for one in events.requests.values() if one.final is None]
        with server.client() as client:
            return Account(events, self._side.read(client, server.url, open_requests))
