"""A cancel that has returned True holds, whatever restarts or freezes."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from celery import chord, signature

from primarch_fleet import Ticket, errors
from primarch_fleet.contract import Lane
from primarch_fleet.protocol import task_name
from tests.support.cancelling import TOLD, MortalFleet
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import Latency, Profile
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 30.0
LANES = get_args(Lane)
SETTINGS = {"FLEET_VISIBILITY_TIMEOUT": "3"}


@pytest.fixture(scope="module")
def lanes(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MortalFleet]:
    """A fleet whose workers have run once, and are dead."""
    folder = tmp_path_factory.mktemp("cancel")
    with (
        Simulator(Profile()) as simulator,
        MortalFleet(simulator, valkey_url, start_worker, folder, **SETTINGS) as fleet,
    ):
        fleet.start()
        fleet.kill()
        yield fleet


def send_chord(lanes: MortalFleet) -> tuple[str, str, str]:
    """Send a chord of two requests; their ids, and that of its body."""
    header = signature(
        task_name("realtime", "complete"),
        [lanes.question("realtime", "chord").to_wire()],
        queue="realtime",
    )
    both = chord([header, header.clone()], app=lanes.fleet.app)
    result: Any = both(signature("body", queue=TOLD))
    first, second = result.parent.results
    return first.id, second.id, result.id


def test_requests_cancelled_while_their_lane_is_down_never_run(lanes: MortalFleet) -> None:
    submitted = {lane: lanes.fleet.submit(lanes.question(lane, f"fleet-{lane}")) for lane in LANES}
    by_celery = {lane: lanes.send_by_celery(lane, f"celery-{lane}") for lane in LANES}
    first, second, whole = send_chord(lanes)
    gc.collect()  # a result of Celery uses its connection when it is deleted

    cancelled = [*submitted.values(), *by_celery.values(), Ticket(first, "realtime", "", "")]
    for ticket in cancelled:
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True, "without any worker"
    assert [lanes.reserved(f"fleet-{lane}") for lane in LANES] == [0, 0, 0]

    lanes.start()
    eventually(lanes.is_idle, TIMEOUT_SECONDS)
    for ticket in cancelled:
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
        assert lanes.fleet.status(ticket) == "REVOKED"
        assert lanes.fleet.cancel(ticket) is True, "a second cancel"
    tenants = [f"{kind}-{lane}" for kind in ("fleet", "celery") for lane in LANES]
    money = {(lanes.reserved(name), lanes.spent(name), lanes.calls(name)) for name in tenants}
    assert money == {(0, 0, 0)}
    assert lanes.told() == sorted(f"errback.celery-{lane}" for lane in LANES)
    assert lanes.calls("chord") == 1
    assert [lanes.fleet.status(second), lanes.fleet.status(whole)] == ["SUCCESS", "FAILURE"]

    lanes.kill()
    assert lanes.fleet.submit(lanes.question("realtime", "later"))
    lanes.start("realtime")
    eventually(lambda: lanes.calls("later") == 1, TIMEOUT_SECONDS)


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoke_that_a_worker_of_another_lane_received_survives_restarts(
    lanes: MortalFleet, terminate: bool
) -> None:
    tenant = f"revoked-{terminate}"
    lanes.kill()
    ticket = lanes.fleet.submit(lanes.question("local", tenant))
    lanes.start("realtime")
    lanes.fleet.app.control.revoke(ticket.id, terminate=terminate, reply=True, limit=1, timeout=30)
    lanes.kill()
    assert lanes.fleet.status(ticket) == "REVOKED"
    lanes.start("local")
    eventually(lanes.is_idle, TIMEOUT_SECONDS)
    assert lanes.fleet.status(ticket) == "REVOKED"
    assert (lanes.reserved(tenant), lanes.spent(tenant)) == (0, 0)


def test_a_frozen_worker_sends_no_answer_of_a_request_that_was_cancelled_meanwhile(
    lanes: MortalFleet,
) -> None:
    lanes.kill()
    lanes.redis.delete(*lanes.redis.keys(f"{TOLD}*") or ["none"])
    lanes.simulator.profile = Profile(latency=Latency(mean=1.5))
    lanes.start("realtime", "local")
    ticket = lanes.send_by_celery("realtime", "frozen")
    eventually(lambda: lanes.calls("frozen") == 1)
    worker = lanes.workers["realtime"][1]
    worker.signal(signal.SIGSTOP)
    try:
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True
    finally:
        worker.signal(signal.SIGCONT)
    eventually(lanes.is_idle, TIMEOUT_SECONDS)
    assert lanes.told() == ["errback.frozen"]
    assert (lanes.fleet.status(ticket), lanes.calls("frozen")) == ("REVOKED", 1)
    eventually(lambda: lanes.reserved("frozen") == 0)
