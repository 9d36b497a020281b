"""The fleet's side of a run: two workers of each lane, beat and two producers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis
import yaml
from celery.states import READY_STATES

from primarch_fleet import CompletionRequest, Fleet, errors
from primarch_fleet.budgets import ledger_keys
from primarch_fleet.queues import priority_lists
from scheduler.store.keys import REQUESTS
from tests.chaos.mixed.account import Request, Rest
from tests.chaos.mixed.processes import Role
from tests.chaos.mixed.settings import HOSTED, OWN, TENANTS, fleet_config, worker_env
from tests.chaos.mixed.workload import QUEUES, follow_ups
from workers.runtime.dead_letters import DEAD_LETTERS
from workers.runtime.leases.leases import LEASES_KEY

POLL_SECONDS = 0.5


class FleetSide:
    """The fleet, with a configuration file in the folder of the run."""

    name = "fleet"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "fleet.yaml").write_text(yaml.safe_dump(fleet_config()))

    def roles(self, seed: int, threads: int) -> list[Role]:
        """The processes: producers last, which start when the lanes answer."""

        def worker(name: str, app: str) -> Role:
            command = ("celery", "-A", app, "worker", "-n", "{name}@chaos", "-l", "INFO")
            return Role(name, command, 2, is_worker=True)

        producer = ("tests.chaos.mixed.producer", "fleet", str(seed), str(threads))
        return [
            worker("realtime", "workers.realtime.app"),
            worker("local", "tests.chaos.mixed.local_app"),
            worker("batch", "scheduler.app"),
            Role("beat", ("celery", "-A", "scheduler.beat", "beat", "-l", "INFO")),
            Role("producer", producer, 2),
        ]

    def env(self, url: str, provider: str) -> dict[str, str]:
        """The environment of each process."""
        return worker_env(str(self._folder), url, provider)

    def wait_for_answers(self, url: str, deadline: float) -> None:
        """Return when each lane has answered a request."""
        with Fleet(url) as fleet:
            for lane in QUEUES:
                message = {"role": "user", "content": f"<start-{lane}> hello"}
                request = CompletionRequest(
                    model=OWN if lane == "local" else HOSTED,
                    messages=[message],
                    lane=lane,
                    max_completion_tokens=20,
                )
                while not _answers(fleet, request, deadline):
                    time.sleep(POLL_SECONDS)

    def read(self, client: redis.Redis, url: str, requests: list[Request]) -> Rest:
        """Read the stored outcomes into the requests, and return what else is left."""
        with Fleet(url) as fleet:
            for one in requests:
                _read_outcome(fleet, one)
            return _rest(client, fleet)


def _answers(fleet: Fleet, request: CompletionRequest, deadline: float) -> bool:
    try:
        fleet.result(fleet.submit(request), deadline - time.monotonic())
    except (errors.NoCatalogue, errors.FleetBusy, errors.ProviderError):
        return False  # not ready yet, or one of the provider's faults
    return True


def _read_outcome(fleet: Fleet, one: Request) -> None:
    """Read the stored outcome of a request, and its receipt."""
    if one.task_id is None or fleet.status(one.task_id) not in READY_STATES:
        return
    try:
        completion = fleet.result(one.task_id, 5)
    except errors.RequestFailed as error:
        one.final, one.text = type(error).__name__, str(error)
        return
    one.final = "ok"
    one.answer_id = completion.body.get("id")
    one.receipt_nanousd = completion.receipt.cost_nanousd


def _rest(client: redis.Redis, fleet: Fleet) -> Rest:
    """Read what is left in Redis."""
    budgets = [fleet.budget(name).month for name in TENANTS]
    return Rest(
        leases=_leases(client),
        reserved_nanousd=sum(one.reserved_nanousd for one in budgets),
        reserved_for=_reserved_for(client),
        spent_nanousd=sum(one.spent_nanousd for one in budgets),
        dead_letters=int(client.llen(DEAD_LETTERS)),
        waiting=sum(_waiting(client, queue) for queue in QUEUES.values()),
        parked=int(client.hlen(REQUESTS)),
        follow_ups=follow_ups(client),
    )


def _leases(client: redis.Redis) -> int:
    """Count the leases of requests; beat's tasks come and go."""
    entries: Any = client.hvals(LEASES_KEY)
    return sum('"task": "scheduler.' not in entry for entry in entries)


def _reserved_for(client: redis.Redis) -> list[str]:
    """Return the ids of the requests that money is reserved for."""
    keys = [ledger_keys(tenant)[1] for tenant in TENANTS]
    return [str(field) for key in keys for field in client.hkeys(key)]


def _waiting(client: redis.Redis, queue: str) -> int:
    """Count the messages of a queue, of all its priorities and tenants."""
    return sum(int(client.llen(name)) for name in priority_lists(queue))
