"""Make the pictures of the operators' page: `python -m docs.screenshots`. It needs Chromium.

It starts the fleet of `make up` with simulated providers, gives it requests of four tenants, and
takes the page as an operator sees it, in light and dark.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import redis

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import LANES, Lane
from tests.acceptance.conftest import Up, running
from tests.support.api_page import Page, serving
from tests.support.browser import Browser, chromium, show
from tests.support.workers import eventually
from workers.runtime.dead_letters import DEAD_LETTERS

IMAGES = ROOT / "docs" / "images"
KEYS = {"ada": {"role": "operator", "sees_prompts": True}}
TENANTS = {"acme": 120, "globex": 70, "initech": 35, "umbrella": 12}
MODELS: dict[Lane, tuple[str, ...]] = {
    "realtime": ("gpt-4o-mini", "gpt-4o-mini", "gpt-4o"),
    "local": ("smollm2-135m",),
    "batch": ("gpt-4o-mini", "gpt-4o"),
}
#: Of the pictures, in pixels.
WIDTH = 1160
#: A batch is created when its oldest request has waited for one second.
SOON = ("max_wait: 300", "max_wait: 1")
#: A call that the picture shows while it runs.
SLOW = "Please take your time."
LOCAL_QUEUE = "local.smollm2-135m"


def main() -> None:
    """Write docs/images/page-light.png and page-dark.png."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "fleet.yaml"
        config.write_text((ROOT / "config" / "fleet.yaml").read_text().replace(*SOON))
        with (
            running(folder / "data", "--realtime", "2", FLEET_CONFIG=str(config)) as up,
            serving(up.url, folder, KEYS) as server,
            chromium(folder / "profile") as browser,
        ):
            page = server.page("ada")
            _fill(up, page)
            _take(browser, page)


def _fill(up: Up, page: Page) -> None:
    """Give the fleet requests that have ended, wait and run, and messages that nothing can run."""
    choose = random.Random(1)  # noqa: S311 - a picture

    def requests(lane: Lane) -> list[CompletionRequest]:
        return [
            _request(lane, tenant, choose)
            for tenant, count in TENANTS.items()
            for _ in range(count)
        ]

    up.simulate({"contains": SLOW, "delay": 60})
    with (
        Fleet(up.url) as fleet,
        redis.Redis.from_url(up.url, decode_responses=True) as client,
    ):
        for lane in LANES:
            fleet.results(fleet.submit_many(requests(lane)), timeout=60)
        for _ in range(3):
            fleet.app.send_task("realtime.summarize", [{"tenant_id": "globex"}], queue="realtime")
        eventually(lambda: client.llen(DEAD_LETTERS) == 3)
        page.act("/queues/pause", name=LOCAL_QUEUE)
        slow = [_request("realtime", tenant, choose, SLOW) for tenant in TENANTS for _ in range(3)]
        fleet.submit_many([*slow, *requests("local")[:17], *requests("batch")])
        eventually(lambda: "2 live batches" in page.text())


def _request(
    lane: Lane, tenant: str, choose: random.Random, text: str = "What is new?"
) -> CompletionRequest:
    return CompletionRequest.parse(
        {
            "lane": lane,
            "tenant_id": tenant,
            "model": choose.choice(MODELS[lane]),
            "messages": [{"role": "user", "content": text * choose.randint(1, 20)}],
            "max_tokens": choose.randint(20, 400),
        }
    )


def _take(browser: Browser, page: Page) -> None:
    """Take the whole page in light and dark."""
    for scheme in ("light", "dark"):
        show(browser, scheme, WIDTH)
        browser.open(page.url.replace("://", f"://ada:{page.key}@"))
        browser.wait_for("Deployments")
        show(browser, scheme, WIDTH, browser.run("document.documentElement.scrollHeight"))
        browser.screenshot(IMAGES / f"page-{scheme}.png")


if __name__ == "__main__":
    main()
