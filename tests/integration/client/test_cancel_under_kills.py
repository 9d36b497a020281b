"""72 requests of all lanes are cancelled while workers are killed, stopped and started at random.

`CANCEL_SEEDS="1 2 3"` tries other seeds than that of `make test`, and `CANCEL_FAULTS=20`
kills or stops more workers.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random
from typing import get_args

import pytest

from primarch_fleet import Ticket, errors
from primarch_fleet.contract import Lane
from tests.support.cancelling import APPS, MortalFleet
from tests.support.scheduler_ticks import ticking
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import BatchProfile, Latency, Profile
from workers.onebox.simulator.server import Simulator

SEEDS = [int(seed) for seed in os.environ.get("CANCEL_SEEDS", "7").split()]
REQUESTS_PER_LANE = 24
FAULTS = int(os.environ.get("CANCEL_FAULTS", "3"))
TIMEOUT_SECONDS = 60.0
SETTINGS = {
    "FLEET_VISIBILITY_TIMEOUT": "2",
    "FLEET_DRAIN_TIMEOUT": "0.5",
    "FLEET_TEST_SECONDS_PER_TOKEN": "0.02",
}
PROFILE = Profile(
    latency=Latency(mean=0.2, time_per_token=0.02),
    batch=BatchProfile(validating=0.1, in_progress=1.0, finalizing=0.1),
)


def strike(fleet: MortalFleet, random: Random) -> None:
    """Kill or stop a worker, and start it again after a moment; several times."""
    for _ in range(FAULTS):
        time.sleep(random.uniform(0, 1))
        lane = random.choice(list(APPS))
        end = fleet.kill if random.random() < 0.5 else fleet.stop
        end(lane)
        time.sleep(random.uniform(0, 0.5))
        fleet.start(lane, wait=False, concurrency=3)


def cancel(fleet: MortalFleet, ticket: Ticket, tenant: str, delay: float) -> tuple[bool, int]:
    """Cancel a request after so many seconds: whether it said True, and the calls until then."""
    time.sleep(delay)
    with suppress(errors.ResultTimeout):  # the worker that had it is dead: ask again
        return fleet.fleet.cancel(ticket, TIMEOUT_SECONDS), fleet.calls(tenant)
    return fleet.fleet.cancel(ticket, TIMEOUT_SECONDS), fleet.calls(tenant)


def is_released(fleet: MortalFleet, tenant: str) -> bool:
    return fleet.reserved(tenant) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_cancelled_request_runs_whatever_dies(
    seed: int,
    valkey_url: str,
    start_worker: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    print(f"seed {seed}")
    random = Random(seed)  # noqa: S311 - no secret
    folder = tmp_path_factory.mktemp("kills")
    with (
        Simulator(PROFILE) as simulator,
        MortalFleet(simulator, valkey_url, start_worker, folder, **SETTINGS) as fleet,
        ThreadPoolExecutor(3 * REQUESTS_PER_LANE + 1) as threads,
    ):
        fleet.start(concurrency=3)
        with ticking(valkey_url, 0.5):
            numbers = range(REQUESTS_PER_LANE)
            orders = [(lane, f"{lane}-{number}") for lane in get_args(Lane) for number in numbers]
            random.shuffle(orders)
            striking = threads.submit(strike, fleet, random)
            cancelling = {}
            for number, (lane, tenant) in enumerate(orders):
                if number % 3:
                    ticket = fleet.fleet.submit(fleet.question(lane, tenant))
                else:
                    ticket = fleet.send_by_celery(lane, tenant)
                delay = random.uniform(0, 1 + FAULTS)
                cancelling[tenant] = ticket, threads.submit(cancel, fleet, ticket, tenant, delay)
            outcomes = {tenant: future.result() for tenant, (_, future) in cancelling.items()}
            striking.result()
        eventually(fleet.is_idle, TIMEOUT_SECONDS)

        cancelled = {tenant: calls for tenant, (said, calls) in outcomes.items() if said}
        assert cancelled, "some were cancelled in time"
        for tenant, calls in cancelled.items():
            ticket = cancelling[tenant][0]
            with pytest.raises(errors.Cancelled):
                fleet.fleet.result(ticket, TIMEOUT_SECONDS)
            assert fleet.calls(tenant) == calls, f"{tenant} started after its cancel"
            eventually(partial(is_released, fleet, tenant))
        told = fleet.told()
        for tenant in {tenant for n, (_, tenant) in enumerate(orders) if not n % 3}:
            name = "errback" if tenant in cancelled else "link"
            assert [one for one in told if one.endswith(f".{tenant}")] == [f"{name}.{tenant}"]
