"""A cancel that has returned True holds, whatever restarts or freezes."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import pytest
from celery import chord

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
    folder = tmp_path_factory.mktemp("cancel")
    with (
        Simulator(Profile()) as simulator,
        MortalFleet(simulator, valkey_url, start_worker, folder, **SETTINGS) as fleet,
    ):
        yield fleet


def send_chord(lanes: MortalFleet) -> tuple[str, str, str]:
    """Send a chord of two requests; their ids, and that of its body."""
    header = lanes.fleet.app.signature(
        task_name("realtime", "complete"),
        [lanes.question("realtime", "chord").to_wire()],
        queue="realtime",
    )
    both = chord([header, header.clone()], app=lanes.fleet.app)
    result: Any = both(lanes.fleet.app.signature("body", queue=TOLD))
    first, second = result.parent.results
    return first.id, second.id, result.id


class Cancelled(NamedTuple):
    """Requests that were cancelled before the workers of their lanes started."""

    revoked: dict[str, Ticket]
    submitted: dict[Lane, Ticket]
    by_celery: dict[Lane, Ticket]
    header: Ticket
    #: Of the chord: the ids of the other request and of the body.
    second: str
    whole: str


@pytest.fixture(scope="module")
def cancelled(lanes: MortalFleet) -> Cancelled:
    """A worker of one lane received revokes, and all died; then the fleet starts, and is idle."""
    lanes.start("realtime")
    revoked = {}
    for terminate in (False, True):
        tenant = f"revoked-{terminate}"
        revoked[tenant] = ticket = lanes.fleet.submit(lanes.question("local", tenant))
        lanes.fleet.app.control.revoke(
            ticket.id, terminate=terminate, reply=True, limit=1, timeout=TIMEOUT_SECONDS
        )
        assert lanes.fleet.status(ticket) == "REVOKED"
    lanes.kill()
    submitted = {lane: lanes.fleet.submit(lanes.question(lane, f"fleet-{lane}")) for lane in LANES}
    by_celery = {lane: lanes.send_by_celery(lane, f"celery-{lane}") for lane in LANES}
    first, second, whole = send_chord(lanes)
    gc.collect()  # a result of Celery uses its connection when it is deleted
    header = Ticket(first, "realtime", "", "")
    for ticket in (*submitted.values(), *by_celery.values(), header):
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True, "without any worker"
    assert [lanes.reserved(f"fleet-{lane}") for lane in LANES] == [0, 0, 0]
    lanes.start()
    eventually(lanes.is_idle, TIMEOUT_SECONDS)
    return Cancelled(revoked, submitted, by_celery, header, second, whole)


def test_requests_cancelled_while_their_lane_is_down_never_run(
    lanes: MortalFleet, cancelled: Cancelled
) -> None:
    for ticket in (*cancelled.submitted.values(), *cancelled.by_celery.values(), cancelled.header):
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
        assert lanes.fleet.status(ticket) == "REVOKED"
        assert lanes.fleet.cancel(ticket) is True, "a second cancel"
    tenants = [f"{kind}-{lane}" for kind in ("fleet", "celery") for lane in LANES]
    money = {(lanes.reserved(name), lanes.spent(name), lanes.calls(name)) for name in tenants}
    assert money == {(0, 0, 0)}
    told = [name for name in lanes.told() if "celery-" in name]
    assert told == sorted(f"errback.celery-{lane}" for lane in LANES)
    assert lanes.calls("chord") == 1
    statuses = [lanes.fleet.status(each) for each in (cancelled.second, cancelled.whole)]
    assert statuses == ["SUCCESS", "FAILURE"]


def test_a_revoke_that_a_worker_of_another_lane_received_survives_restarts(
    lanes: MortalFleet, cancelled: Cancelled
) -> None:
    for tenant, ticket in cancelled.revoked.items():
        assert lanes.fleet.status(ticket) == "REVOKED"
        money = (lanes.reserved(tenant), lanes.spent(tenant), lanes.calls(tenant))
        assert money == (0, 0, 0)


def test_a_frozen_worker_sends_no_answer_of_a_request_that_was_cancelled_meanwhile(
    lanes: MortalFleet, cancelled: Cancelled
) -> None:
    lanes.simulator.profile = Profile(latency=Latency(mean=1.5))
    ticket = lanes.send_by_celery("realtime", "frozen")
    eventually(lambda: lanes.calls("frozen") == 1)
    worker = lanes.workers["realtime"][1]
    worker.signal(signal.SIGSTOP)
    try:
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True
    finally:
        worker.signal(signal.SIGCONT)
    eventually(lanes.is_idle, TIMEOUT_SECONDS)
    assert [name for name in lanes.told() if "frozen" in name] == ["errback.frozen"]
    assert (lanes.fleet.status(ticket), lanes.calls("frozen")) == ("REVOKED", 1)
    eventually(lambda: lanes.reserved("frozen") == 0)
