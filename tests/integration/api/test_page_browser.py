"""The operators' page in a real browser: its login, its colours, its forms, hostile names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from primarch_fleet import Fleet
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from tests.support.api_page import Server, serving
from tests.support.browser import Browser, chromium, show
from tests.support.producer import CATALOGUE, request
from tests.support.workers import eventually

#: Would change the title of a page that runs it.
HOSTILE = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
PAGES = ("/", "/requests", "/batches", "/dead-letters")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture(scope="module")
def served(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(valkey_url, tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture
def address(browser: Browser, served: Server, server: redis.Redis) -> str:
    """The page's address; the browser has logged in as the operator."""
    CATALOGUE.model_copy(update={"heartbeats": True}).publish(server)
    key = served.page("operator").key
    browser.open(served.url.replace("://", f"://any:{key}@"))
    browser.wait_for("Nothing needs attention")
    return served.url


def test_before_the_login_the_browser_sees_no_queue(
    browser: Browser, served: Server, server: redis.Redis
) -> None:
    browser.open(served.url)
    assert "realtime" not in browser.text()


@pytest.mark.parametrize("path", PAGES)
def test_light_and_dark_follow_the_browser(browser: Browser, address: str, path: str) -> None:
    browser.open(address + path)
    lightness = {}
    for scheme in ("light", "dark"):
        show(browser, scheme, 1160)
        for element, style in (("body", "backgroundColor"), ("h1", "color")):
            script = f"getComputedStyle(document.querySelector('{element}')).{style}"
            numbers = browser.run(script).strip("rgb()").split(",")
            lightness[scheme, style] = sum(map(int, numbers)) / 3
    assert lightness["light", "color"] < 60
    assert lightness["light", "backgroundColor"] > 200
    assert lightness["dark", "color"] > 200
    assert lightness["dark", "backgroundColor"] < 60


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, address: str, path: str) -> None:
    show(browser, "light", 360)
    browser.open(address + path)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    show(browser, "light", 1160)


@pytest.mark.parametrize("path", PAGES)
def test_every_field_has_a_label_and_every_column_a_name(
    browser: Browser, address: str, server: redis.Redis, fleet: Fleet, path: str
) -> None:
    fleet.submit(request())
    browser.open(address + path)
    unnamed = """[...document.querySelectorAll('input, select, button, th, summary')]
        .filter(one => one.type !== 'hidden')
        .filter(one => !one.ariaLabel && !one.labels?.length && !one.textContent.trim()).length"""
    assert browser.run(unnamed) == 0
    assert browser.run("document.querySelectorAll('thead th:not([scope=col])').length") == 0
    assert browser.run("document.querySelectorAll('h1').length") == 1


def test_a_click_on_pause_pauses_and_says_so(
    browser: Browser, address: str, server: redis.Redis
) -> None:
    browser.click("button[aria-label='Pause realtime']")
    browser.wait_for("Paused: realtime.")
    assert server.smembers(PAUSED_QUEUES_KEY) == {"realtime"}
    browser.click("button[aria-label='Resume realtime']")
    browser.wait_for("Resumed: realtime.")
    assert not server.exists(PAUSED_QUEUES_KEY)


def test_a_request_is_chosen_by_filter_and_cancelled(
    browser: Browser, address: str, fleet: Fleet
) -> None:
    fleet.submit(request(tenant_id="globex"))
    ticket = fleet.submit(request(tenant_id="acme"))
    browser.open(f"{address}/requests")
    browser.fill("input[name=tenant]", "acme")
    browser.click(".filter button")
    eventually(lambda: "tenant=acme" in browser.run("location.search"))
    assert browser.run("document.querySelectorAll('input[name=id]').length") == 1
    browser.click(f"input[value='{ticket.id}']")
    browser.click(".actions > button")
    browser.wait_for("1 request cancelled.")
    assert fleet.status(ticket) == "REVOKED"
    assert browser.run("document.querySelector('input[name=tenant]').value") == "acme"


def test_a_hostile_name_runs_nothing(browser: Browser, address: str, fleet: Fleet) -> None:
    fleet.submit(request(tenant_id=HOSTILE, user_id=HOSTILE))
    browser.open(f"{address}/requests")
    browser.wait_for(HOSTILE)
    assert browser.run("document.title") == "Requests · Primarch fleet"
    assert browser.run("document.querySelectorAll('script, img').length") == 0


def test_the_page_forbids_a_script_that_gets_into_it(browser: Browser, address: str) -> None:
    browser.run(
        "document.body.appendChild(Object.assign(document.createElement('script'), "
        "{textContent: \"document.title = 'run'\"})), 0"
    )
    assert browser.run("document.title") == "Overview · Primarch fleet"
