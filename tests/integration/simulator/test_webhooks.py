"""The simulator's webhooks, verified with the real SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.integration.simulator.batch_file import create, lines
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile, Webhook

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw=="


class Receiver(HTTPServer):
    """Records the posts it receives, and responds with the next of `statuses`, or 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def profile(receiver: Receiver, **batch: float) -> Profile:
    webhook = Webhook(url=receiver.url, secret=SECRET)
    return Profile(models=MODELS, batch=BatchProfile(**batch), webhook=webhook)


def test_each_ended_batch_sends_an_event_that_the_sdk_accepts(
    sim: Simulator, client: OpenAI, clock: VirtualClock, receiver: Receiver
) -> None:
    sim.profile = profile(receiver)
    completed, failed = create(client, lines(1)).id, create(client, b"{").id
    cancelled = create(client, lines(1)).id
    client.batches.cancel(cancelled)
    sim.profile = profile(receiver, expire_at_fraction=0.5)
    expired = create(client, lines(2)).id
    assert sim.send_webhooks() == []
    clock.advance(90_000)
    assert sim.send_webhooks() == [200] * 4
    events = [
        client.webhooks.unwrap(body, headers, secret=SECRET) for headers, body in receiver.received
    ]
    assert {(event.type, event.data.model_dump()["id"]) for event in events} == {
        ("batch.completed", completed),
        ("batch.failed", failed),
        ("batch.cancelled", cancelled),
        ("batch.expired", expired),
    }
    assert sim.send_webhooks() == [], "each event is sent once"


def test_an_event_that_was_not_accepted_is_sent_again_with_its_id(
    sim: Simulator, client: OpenAI, clock: VirtualClock, receiver: Receiver, http: httpx.Client
) -> None:
    sim.profile = profile(receiver)
    create(client, lines(1))
    clock.advance(100)
    receiver.statuses = [503, 302]
    assert [sim.send_webhooks() for _ in range(2)] == [[503], [302]]
    response = http.post(http.base_url.copy_with(path="/simulator/webhooks"))
    assert response.json() == {"answers": [200]}
    assert len(receiver.received) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


def test_a_signature_is_invalid_for_another_body(
    sim: Simulator, client: OpenAI, clock: VirtualClock, receiver: Receiver
) -> None:
    sim.profile = profile(receiver)
    create(client, lines(1))
    clock.advance(100)
    sim.send_webhooks()
    ((headers, body),) = receiver.received
    client.webhooks.verify_signature(body, headers, secret=SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body + b" ", headers, secret=SECRET)


def test_events_need_a_receiver_and_wait_while_it_is_down(
    sim: Simulator, client: OpenAI, clock: VirtualClock
) -> None:
    create(client, lines(1))
    clock.advance(100)
    assert sim.send_webhooks() == []
    webhook = Webhook(url="http://127.0.0.1:1/", secret=SECRET)
    sim.profile = Profile(models=MODELS, webhook=webhook)
    create(client, lines(1))
    clock.advance(100)
    assert sim.send_webhooks() == [0] == sim.send_webhooks()
