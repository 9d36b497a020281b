"""What an operator does on the page, with real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from primarch_fleet import Ticket, errors
from primarch_fleet.contract import Lane
from primarch_fleet.protocol import task_name
from primarch_fleet.queues import priority_lists
from tests.support.api_page import Page, serving, words
from tests.support.cancelling import MortalFleet
from tests.support.dead_letters import bury
from tests.support.producer import messages
from tests.support.workers import StartWorker, eventually, is_parked
from workers.onebox.simulator.profile import BatchProfile, Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.dead_letters import DEAD_LETTERS

TIMEOUT_SECONDS = 30.0
#: A queue that no worker serves.
UNSERVED = "unserved"
QUICK = Profile(batch=BatchProfile(in_progress=100_000))
SLOW = Profile(latency=Latency(mean=600.0), batch=BatchProfile(in_progress=100_000))


@pytest.fixture(scope="module")
def lanes(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MortalFleet]:
    folder = tmp_path_factory.mktemp("lanes")
    with (
        Simulator(QUICK) as simulator,
        MortalFleet(simulator, valkey_url, start_worker, folder) as fleet,
    ):
        fleet.start("realtime", "batch")
        yield fleet


@pytest.fixture(scope="module")
def page(
    lanes: MortalFleet, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    with serving(valkey_url, tmp_path_factory.mktemp("serve")) as server:
        yield server.page("operator")


@pytest.fixture(autouse=True)
def _quick(lanes: MortalFleet) -> None:
    lanes.simulator.profile = QUICK


def submit(lanes: MortalFleet, lane: Lane, tenant: str) -> Ticket:
    return lanes.fleet.submit(lanes.question(lane, tenant))


def bury_request(lanes: MortalFleet, tenant: str) -> Ticket:
    """Make the message of a request that the realtime lane can answer a dead letter."""
    wire = lanes.question("realtime", tenant).to_wire()
    sent = lanes.fleet.app.send_task(task_name("realtime", "complete"), [wire], queue=UNSERVED)
    [message] = messages(lanes.redis, UNSERVED)
    lanes.redis.delete(*priority_lists(UNSERVED))
    bury(lanes.redis, json.dumps(message), "poison", "it killed its worker")
    return Ticket(str(sent.id), "realtime", "", "")


def state(page: Page, ticket: Ticket) -> str:
    """The state of a request as the page shows it; "" if it is not open."""
    words = page.text("/requests").split()
    return words[words.index(ticket.id) + 1] if ticket.id in words else ""


def test_the_overview_shows_the_workers_that_answer_and_what_they_run(
    lanes: MortalFleet, page: Page
) -> None:
    lanes.simulator.profile = SLOW
    ticket = submit(lanes, "realtime", "seen")
    eventually(lambda: lanes.calls("seen"))
    text = page.text()
    assert "mortal-realtime@test realtime 1 " in text
    assert "mortal-batch@test batch, scheduler " in text
    assert "openai-gpt-4o-mini gpt-4o-mini openai" in text
    assert "on 2 workers" in text
    assert "cancelled" in words(page.act("/requests/cancel", id=ticket.id))


def test_requests_that_are_chosen_are_cancelled_and_others_stay(
    lanes: MortalFleet, page: Page
) -> None:
    lanes.simulator.profile = SLOW
    running, parked = submit(lanes, "realtime", "chosen"), submit(lanes, "batch", "chosen")
    waiting = submit(lanes, "local", "chosen")
    staying = submit(lanes, "local", "staying")
    eventually(lambda: lanes.calls("chosen"))
    eventually(lambda: is_parked(lanes.redis, parked))
    states = [state(page, ticket) for ticket in (running, parked, waiting)]
    assert states == ["running", "parked", "waiting"]

    chosen = [running.id, parked.id, waiting.id, "unknown"]
    reply = page.act("/requests/cancel", "/requests", id=chosen, tenant="chosen")
    assert "3 requests cancelled. 1 had ended meanwhile." in words(reply)
    assert str(reply.url).count("tenant=chosen") == 1, "the filter stays"
    for ticket in (running, parked, waiting):
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    assert state(page, staying) == "waiting"
    assert "1 request cancelled." in words(page.act("/requests/cancel", id=staying.id))


def test_all_requests_that_match_a_filter_are_cancelled(lanes: MortalFleet, page: Page) -> None:
    leaving = [submit(lanes, "local", "leaving") for _ in range(120)]
    staying = submit(lanes, "local", "staying")
    text = words(page.act("/requests/cancel", "/requests", all="yes", tenant="leaving"))
    assert "120 open requests (local 120) cancelled." in text
    assert lanes.fleet.progress([*leaving, staying]).failed == 120
    assert state(page, staying) == "waiting"
    token = page.token()
    without = page.post("/requests/cancel", {"all": "yes", "tenant": " ", "token": token})
    assert without.status_code == 400, "all requests of the fleet are not meant"
    assert "No request was chosen." in words(page.act("/requests/cancel"))
    assert state(page, staying) == "waiting"
    page.act("/requests/cancel", id=staying.id)


def test_a_paused_queue_keeps_its_requests_until_it_is_resumed(
    lanes: MortalFleet, page: Page
) -> None:
    assert "Paused: realtime." in words(page.act("/queues/pause", name="realtime"))
    ticket = submit(lanes, "realtime", "patient")
    text = page.text()
    assert "realtime 1 " in text
    assert "paused Resume" in text
    with pytest.raises(errors.ResultTimeout):
        lanes.fleet.result(ticket, 1.5)
    assert "Resumed: realtime." in words(page.act("/queues/resume", name="realtime"))
    assert lanes.fleet.result(ticket, TIMEOUT_SECONDS)


def test_batch_creation_is_paused_and_resumed_on_the_page_of_batches(
    lanes: MortalFleet, page: Page
) -> None:
    reply = page.act("/queues/pause", "/batches", name="batch", page="/batches")
    assert reply.url.path == "/batches"
    assert "No batches are created." in words(reply)
    assert "creates no batches" in page.text()
    reply = page.act("/queues/resume", "/batches", name="batch", page="//evil.example")
    assert reply.url.path == "/"
    assert "Batches are created." in page.text("/batches")


def test_a_live_batch_is_shown_with_its_progress_and_can_be_cancelled(
    lanes: MortalFleet, page: Page
) -> None:
    tickets = [submit(lanes, "batch", "patient") for _ in range(3)]
    eventually(lambda: is_parked(lanes.redis, *tickets))
    assert "openai /v1/chat/completions gpt-4o-mini 3" in page.text("/batches")
    lanes.fleet.app.send_task("scheduler.aggregate", queue="scheduler")
    eventually(lambda: "1 live batch" in page.text())
    eventually(lambda: "submitted" in page.text("/batches"))
    assert "0 of 3 $0 $0 Cancel" in page.text("/batches")
    intent = page.get("/batches").text.split('name="intent" value="')[1].split('"')[0]
    reply = page.act("/batches/cancel", "/batches", intent=intent)
    assert f"Batch {intent}: cancelled at its provider." in words(reply)
    assert "no live batch has this intent" in words(page.act("/batches/cancel", intent="x"))
    text = words(page.act("/requests/cancel", id=[ticket.id for ticket in tickets]))
    assert "3 requests cancelled." in text


def test_a_dead_letter_is_retried_once_and_answered(lanes: MortalFleet, page: Page) -> None:
    ticket = bury_request(lanes, "again")
    text = page.text("/dead-letters?tenant=again")
    assert "realtime again gpt-4o-mini" in text
    assert "dead letters: 1" in page.text()
    reply = page.act("/dead-letters/retry", "/dead-letters", id=ticket.id, tenant="again")
    assert "1 message back in the queue." in words(reply)
    assert "No dead letter matches." in words(reply)
    assert lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    again = words(page.act("/dead-letters/retry", id=ticket.id))
    assert f"0 messages back in the queue. {ticket.id}: no such dead letter" in again


def test_dead_letters_are_dropped_by_choice_and_by_filter(lanes: MortalFleet, page: Page) -> None:
    for tenant in ("one", "two", "two", "three"):
        bury_request(lanes, tenant)
    assert "2 messages dropped." in words(page.act("/dead-letters/drop", all="yes", tenant="two"))
    source = page.get("/dead-letters?tenant=one").text
    letter = source.split('name="id" value="')[1].split('"')[0]
    assert "1 message dropped." in words(page.act("/dead-letters/drop", id=letter))
    assert "No dead letter was chosen." in words(page.act("/dead-letters/drop"))
    assert lanes.redis.llen(DEAD_LETTERS) == 1
    assert "1 message dropped." in words(page.act("/dead-letters/drop", all="yes"))


def test_the_retry_of_a_task_that_no_worker_knows_says_what_is_needed(
    lanes: MortalFleet, page: Page
) -> None:
    lanes.fleet.app.send_task("realtime.summarize", [{}], queue="realtime")
    eventually(lambda: lanes.redis.llen(DEAD_LETTERS) == 1)
    text = words(page.act("/dead-letters/retry", all="yes"))
    assert "No worker knew realtime.summarize: start workers whose code has the task." in text
    eventually(lambda: lanes.redis.llen(DEAD_LETTERS) == 1)
    page.act("/dead-letters/drop", all="yes")
