"""Webhooks as the simulator sends them, read with the real SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.unit.simulator.batch_file import create, lines
from tests.unit.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile, Webhook

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw=="


class Mailbox(HTTPServer):
    """Keeps what is posted to it, and answers each with the next of `answers`, then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Take)
        self.answers: list[int] = []
        self.taken: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Take(BaseHTTPRequestHandler):
    server: Mailbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((dict(self.headers), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def offer(mailbox: Mailbox, **batch: float) -> Profile:
    to = Webhook(url=mailbox.url, secret=SECRET)
    return Profile(models=MODELS, batch=BatchProfile(**batch), webhook=to)


def test_an_event_comes_for_each_end_and_the_sdk_accepts_it(
    sim: Simulator, client: OpenAI, clock: VirtualClock, mailbox: Mailbox
) -> None:
    sim.profile = offer(mailbox)
    completed, failed = create(client, lines(1)).id, create(client, b"{").id
    cancelled = create(client, lines(1)).id
    client.batches.cancel(cancelled)
    sim.profile = offer(mailbox, expire_at_fraction=0.5)
    expired = create(client, lines(2)).id
    assert sim.send_webhooks() == []
    clock.advance(90_000)
    assert sim.send_webhooks() == [200] * 4
    events = [
        client.webhooks.unwrap(body, headers, secret=SECRET) for headers, body in mailbox.taken
    ]
    assert {(one.type, one.data.model_dump()["id"]) for one in events} == {
        ("batch.completed", completed),
        ("batch.failed", failed),
        ("batch.cancelled", cancelled),
        ("batch.expired", expired),
    }
    assert sim.send_webhooks() == [], "each once"


def test_an_event_that_was_not_taken_comes_again_under_its_id(
    sim: Simulator, client: OpenAI, clock: VirtualClock, mailbox: Mailbox, http: httpx.Client
) -> None:
    sim.profile = offer(mailbox)
    create(client, lines(1))
    clock.advance(100)
    mailbox.answers = [503, 302]
    assert [sim.send_webhooks() for _ in range(2)] == [[503], [302]]
    answer = http.post(http.base_url.copy_with(path="/simulator/webhooks"))
    assert answer.json() == {"answers": [200]}
    assert len(mailbox.taken) == 3
    assert len({headers["webhook-id"] for headers, _ in mailbox.taken}) == 1


def test_another_body_does_not_have_the_signature(
    sim: Simulator, client: OpenAI, clock: VirtualClock, mailbox: Mailbox
) -> None:
    sim.profile = offer(mailbox)
    create(client, lines(1))
    clock.advance(100)
    sim.send_webhooks()
    ((headers, body),) = mailbox.taken
    client.webhooks.verify_signature(body, headers, secret=SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body + b" ", headers, secret=SECRET)


def test_nobody_is_told_without_an_address_and_one_that_is_gone_waits(
    sim: Simulator, client: OpenAI, clock: VirtualClock
) -> None:
    create(client, lines(1))
    clock.advance(100)
    assert sim.send_webhooks() == []
    to = Webhook(url="http://127.0.0.1:1/", secret=SECRET)
    sim.profile = Profile(models=MODELS, webhook=to)
    create(client, lines(1))
    clock.advance(100)
    assert sim.send_webhooks() == [0] == sim.send_webhooks()
