"""Flower in a real browser: scripts of its pages fill the tables and send what buttons mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import Cancelled
from primarch_fleet.money import format_dollars
from tests.acceptance.conftest import Up
from tests.support.browser import Browser, chromium
from tests.support.workers import eventually

PROMPT = "a secret of acme"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture
def flower(browser: Browser, up: Up) -> str:
    """Flower's address; the browser has logged in."""
    address = up.addresses["flower"]
    browser.open(address.replace("://", f"://{up.flower_login}@"))
    browser.wait_for("realtime-1@")
    return address


def worker_of(up: Up) -> str:
    """The node of the realtime lane's worker."""
    names: list[str] = eventually(lambda: list(json.loads(up.flower("/api/workers?refresh=1"))))
    return next(name for name in names if name.startswith("realtime-1@"))


def pool(up: Up, worker: str) -> dict[str, Any]:
    """What a worker says of its pool."""
    with Celery(broker=up.url, set_as_current=False) as operator:
        stats: Any = operator.control.inspect([worker], timeout=5, limit=1).stats()
    return dict(stats[worker]["pool"])


def request() -> CompletionRequest:
    messages = [{"role": "user", "content": PROMPT}]
    return CompletionRequest(
        model="gpt-4o-mini", lane="realtime", tenant_id="acme", messages=messages
    )


def test_without_the_login_no_worker_is_shown(browser: Browser, up: Up) -> None:
    browser.open(up.addresses["flower"] + "/workers")
    assert "@" not in browser.text()


def test_the_workers_page_shows_a_worker_of_each_lane(
    browser: Browser, flower: str, up: Up
) -> None:
    browser.open(f"{flower}/workers")
    for lane in ("realtime", "local", "batch"):
        browser.wait_for(f"{lane}-1@")


def test_the_broker_page_loads(browser: Browser, flower: str) -> None:
    browser.open(f"{flower}/broker")
    browser.wait_for("Broker")
    assert browser.run("location.pathname") == "/broker"
    assert "Traceback" not in browser.source()


def test_a_tasks_page_shows_model_tenant_lane_and_cost_and_no_prompt(
    browser: Browser, flower: str, up: Up
) -> None:
    with Fleet(up.url) as fleet:
        ticket = fleet.submit(request())
        completion = fleet.result(ticket, timeout=30)
    cost = format_dollars(completion.receipt.cost_nanousd)

    def page() -> str:
        browser.open(f"{flower}/task/{ticket.id}")
        return browser.text()

    eventually(lambda: f"cost={cost}" in page())
    assert "model=gpt-4o-mini" in browser.text()
    assert "tenant=acme lane=realtime" in browser.text()
    for secret in (PROMPT, completion.text):
        assert secret not in browser.source()


def test_grow_and_shrink_change_the_pool(browser: Browser, flower: str, up: Up) -> None:
    worker = worker_of(up)

    before = pool(up, worker)["max-concurrency"]
    browser.open(f"{flower}/worker/{worker}")
    browser.fill("#pool-size", "3")
    browser.click("#worker-pool-grow")
    browser.wait_for("Growing")
    assert pool(up, worker)["max-concurrency"] == before + 3
    browser.click("#worker-pool-shrink")
    browser.wait_for("Shrinking")
    assert pool(up, worker)["max-concurrency"] == before


def test_terminate_ends_a_call_that_runs(browser: Browser, flower: str, up: Up) -> None:
    up.simulate({"endpoint": "chat.completions", "contains": PROMPT, "delay": 120})
    worker = worker_of(up)
    with Fleet(up.url) as fleet:
        ticket = fleet.submit(request())

        def terminate_is_offered() -> bool:
            browser.open(f"{flower}/task/{ticket.id}")
            return bool(browser.run("document.querySelector('#task-terminate') !== null"))

        eventually(terminate_is_offered)
        assert pool(up, worker)["running"] == 1
        browser.click("#task-terminate")
        browser.wait_for("Revoked")
        with pytest.raises(Cancelled):
            fleet.result(ticket, timeout=30)
        eventually(lambda: pool(up, worker)["running"] == 0)
