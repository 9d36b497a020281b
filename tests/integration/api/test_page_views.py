"""What the page shows, and what it never shows: prompts, and the markup of hostile names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis

from primarch_fleet import Fleet
from primarch_fleet.contract import BATCH_QUEUE
from primarch_fleet.queues import priority_lists
from scheduler.admin.dead_letters import PAGE
from tests.support.api_page import Server, serving
from tests.support.dead_letters import bury
from tests.support.producer import CATALOGUE, messages, request
from workers.observability.cost_recorder import day_key

HOSTILE = "<script>alert('1')</script>\"'&"
PROMPT = "what only the model may read"


@pytest.fixture(scope="module")
def served(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(valkey_url, tmp_path_factory.mktemp("serve")) as server:
        yield server


def bury_request(fleet: Fleet, server: redis.Redis, **fields: str) -> None:
    """Make the message of a request with a prompt a dead letter."""
    fleet.submit(request(PROMPT, **fields))
    [message] = messages(server)
    server.delete(*priority_lists("realtime"))
    bury(server, json.dumps(message))


def spend(server: redis.Redis, tenant: str, lane: str, nanos: int) -> None:
    """Write a cost of today, and a list price of twice as much."""
    for figure, amount in {
        "requests": 1,
        "cost_nanousd": nanos,
        "list_cost_nanousd": 2 * nanos,
    }.items():
        field = json.dumps([tenant, lane, "openai", "m", figure])
        server.hset(day_key(datetime.now(UTC).date()), field, amount)


def test_the_overview_shows_what_waits_and_that_nothing_serves_it(
    served: Server, fleet: Fleet, server: redis.Redis
) -> None:
    CATALOGUE.model_copy(update={"heartbeats": True}).publish(server)
    for _ in range(3):
        fleet.submit(request())
    text = served.page("reader").text()
    assert "realtime: 3 requests wait, and no worker serves them" in text
    assert re.search(r"Waiting 3 the oldest for \d+ s ", text)
    assert re.search(r"realtime 3 \d+ s 0 no worker", text)
    assert "No worker answers." in text


def test_a_fleet_without_problems_says_so(served: Server, server: redis.Redis) -> None:
    assert "Nothing needs attention." in served.page("reader").text()


def test_todays_costs_are_summed_by_tenant_and_by_lane(served: Server, server: redis.Redis) -> None:
    spend(server, "acme", "realtime", 3_000_000_000)
    spend(server, "acme", BATCH_QUEUE, 1_000_000_000)
    spend(server, "globex", BATCH_QUEUE, 250_000_000)
    text = served.page("reader").text()
    assert "Cost today $4.2500 3 answers" in text
    assert "realtime 1 $3.0000 $3.0000 batch 2 $1.2500 $1.2500" in text
    assert "acme 2 $4.0000 $4.0000 globex 1 $0.2500 $0.2500" in text


def test_of_many_tenants_the_most_expensive_are_shown(served: Server, server: redis.Redis) -> None:
    for number in range(30):
        spend(server, f"tenant-{number}", "realtime", (number + 1) * 1_000_000)
    text = served.page("reader").text()
    assert "20 more tenants, not shown." in text
    assert "tenant-29" in text
    assert "tenant-19 " not in text


@pytest.mark.parametrize("key", ["reader", "operator"])
def test_hostile_names_are_text_on_every_page(
    served: Server, fleet: Fleet, server: redis.Redis, key: str
) -> None:
    bury_request(fleet, server, tenant_id=HOSTILE)
    spend(server, HOSTILE, "realtime", 1_000_000)
    server.sadd("fleet:paused_queues", HOSTILE)
    fleet.submit(request(tenant_id=HOSTILE, user_id=HOSTILE))
    bury(server, HOSTILE, kind=HOSTILE, error=HOSTILE)
    page = served.page(key)
    filtered = {"tenant": HOSTILE, "user": HOSTILE, "model": HOSTILE}
    letters = page.get("/dead-letters").text
    addresses = [part.split('"')[0] for part in letters.split('href="/dead-letters/')[1:]]
    assert len(addresses) == 2
    for path in (
        *("/", "/requests", "/batches", "/dead-letters"),
        *(f"/dead-letters/{address}" for address in addresses),
        *(f"/requests?{name}=%3Cscript%3E%22%27{value[0]}" for name, value in filtered.items()),
        "/dead-letters?kind=%22%3E%3Cscript%3E",
    ):
        source = page.get(path).text
        assert "<script" not in source, path
    assert "&lt;script&gt;alert(" in page.get("/").text
    assert "&lt;script&gt;alert(" in page.get("/requests").text


def test_a_prompt_is_shown_only_to_a_key_that_sees_prompts(
    served: Server, fleet: Fleet, server: redis.Redis
) -> None:
    bury_request(fleet, server, tenant_id="acme")
    [letter] = [
        part.split('"')[0]
        for part in served.page("reader")
        .get("/dead-letters")
        .text.split('href="/dead-letters/')[1:]
    ]
    for key in ("reader", "other-operator"):
        text = served.page(key).text(f"/dead-letters/{letter}")
        assert "does not show prompts" in text
        assert PROMPT not in served.page(key).get(f"/dead-letters/{letter}").text
    assert PROMPT in served.page("operator").text(f"/dead-letters/{letter}")
    for key in ("reader", "operator"):
        assert PROMPT not in served.page(key).get("/dead-letters").text
    assert served.page("operator").get("/dead-letters/nothing").status_code == 404


def test_requests_are_shown_by_filter_without_their_prompts(
    served: Server, fleet: Fleet, server: redis.Redis
) -> None:
    mine = fleet.submit(request(PROMPT, tenant_id="acme", user_id="ann"))
    other = fleet.submit(request(PROMPT, tenant_id="globex", lane="batch"))
    page = served.page("reader")
    for path, ids in {
        "/requests": {mine.id, other.id},
        "/requests?tenant=acme": {mine.id},
        "/requests?lane=batch": {other.id},
        "/requests?user=ann&queue=realtime": {mine.id},
        "/requests?state=waiting&model=m": {mine.id, other.id},
        "/requests?state=running": set(),
        "/requests?tenant=&lane=": {mine.id, other.id},
    }.items():
        text = page.text(path)
        assert {one for one in (mine.id, other.id) if one in text} == ids, path
        assert PROMPT not in text


def test_a_long_list_shows_its_first_rows_and_how_many_more_there_are(
    served: Server, fleet: Fleet, server: redis.Redis
) -> None:
    fleet.submit_many([request() for _ in range(250)])
    reply = served.page("operator").get("/requests")
    assert reply.text.count('name="id"') == 100
    assert "150 more open requests, not shown." in reply.text
    for number in range(PAGE * 3):
        bury(server, f"message {number}")
    reply = served.page("operator").get("/dead-letters")
    assert reply.text.count('name="id" value') == 100
    assert "50 more dead letters, not shown." in reply.text


def test_pages_without_choices_are_loaded_again_until_that_is_stopped(
    served: Server, server: redis.Redis
) -> None:
    page = served.page("operator")
    for path in ("/", "/batches"):
        assert f'http-equiv="refresh" content="15; url={path}"' in page.get(path).text
        assert 'http-equiv="refresh"' not in page.get(f"{path}?refresh=off").text
    for path in ("/requests", "/dead-letters"):
        assert 'http-equiv="refresh"' not in page.get(path).text


def test_a_message_of_an_action_is_gone_when_the_page_is_loaded_again(
    served: Server, server: redis.Redis
) -> None:
    reply = served.page("operator").act("/queues/pause", name="realtime")
    assert "Paused" in reply.text
    assert 'content="15; url=/"' in reply.text


def test_redis_that_does_not_answer_is_an_error_page(served: Server, server: redis.Redis) -> None:
    server.set("fleet:dead_letters", "no list")
    reply = served.page("reader").get()
    assert reply.status_code == 503
    assert "broker did not answer" in reply.text
    assert "Traceback" not in reply.text
