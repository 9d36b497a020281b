"""Prompts and keys of real workers: in no log at any level, no event, no reply, no error."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import RequestFailed
from tests.support.workers import StartWorker, Worker, eventually
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator
from workers.runtime.control.control_replies import REPLY_TTL_SECONDS

KEY, MARK = "sk-hunter2-hunter2-hunter2", "the-marker-of-this-prompt"
MESSAGES = [{"role": "user", "content": f"Please repeat: {MARK}"}]
QUOTATION = f"Key {KEY} may not send {MARK!r}"


def quoting(code: str) -> Script:
    """A refusal of prompts with its code, which quotes key and prompt."""
    error = {"message": QUOTATION, "type": "invalid_request_error", "code": code}
    return Script(contains=code, status=400, body={"error": error})


#: LiteLLM logs each of the last two in a way of its own.
CODES = ["invalid_value", "context_length_exceeded", "content_policy_violation"]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(Profile()) as simulator:
        simulator.script(Script(contains="slow", delay=60), *map(quoting, CODES))
        yield simulator


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of the server, which is not emptied."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, valkey_url: str, simulator: Simulator) -> Iterator[Worker]:
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": simulator.url,
        "LITELLM_LOG": "DEBUG",
        "OPENAI_LOG": "debug",
    }
    args = ("-l", "DEBUG")
    with start_worker("private", app="workers.realtime.app", args=args, env=env) as worker:
        yield worker


def ask(text: str = "") -> CompletionRequest:
    messages = [{"role": "user", "content": f"{text} {MESSAGES[0]['content']}"}]
    return CompletionRequest(model="gpt-4o-mini", lane="realtime", messages=messages)


def is_private(text: str) -> bool:
    return KEY not in text and MARK not in text


@pytest.mark.parametrize("code", CODES)
def test_a_provider_that_quotes_key_and_prompt_is_quoted_without_them(
    worker: Worker, valkey_url: str, client: redis.Redis, code: str
) -> None:
    with Fleet(valkey_url) as fleet:
        ticket = fleet.submit(ask(code))
        with pytest.raises(RequestFailed, match=r"Key \*\*\* may not send '\[prompt\]'"):
            fleet.result(ticket, timeout=30)
        assert is_private(str(client.get(f"celery-task-meta-{ticket.id}")))
        log = worker.log.read_text()
        assert ticket.id in log
        assert is_private(log)


def test_inspect_shows_a_running_task_without_its_prompt(worker: Worker, valkey_url: str) -> None:
    with Fleet(valkey_url) as fleet:
        ticket = fleet.submit(ask("slow"))
        waiting = fleet.app.send_task("realtime.complete", [ask().to_wire()], countdown=60)
        inspect = fleet.app.control.inspect([worker.name], timeout=5, limit=1)
        eventually(lambda: ticket.id in str(inspect.active()))
        eventually(lambda: waiting.id in str(inspect.scheduled()))
        replies = [
            inspect.active(),
            inspect.scheduled(),
            inspect.reserved(),
            inspect.query_task(ticket.id, waiting.id),
            inspect.conf(),
            inspect.report(),
            inspect.stats(),
        ]
        assert ticket.id in json.dumps(replies)
        assert is_private(json.dumps(replies))
        assert fleet.cancel(ticket)
        assert fleet.cancel(waiting.id)


def test_a_reply_to_an_asker_that_has_died_expires(
    worker: Worker, valkey_url: str, client: redis.Redis
) -> None:
    with Fleet(valkey_url) as fleet, fleet.app.connection_for_write() as connection:
        control: Any = fleet.app.control
        mailbox = control.mailbox(connection)
        queue = mailbox.get_reply_queue()(connection.default_channel)
        queue.declare()
        mailbox._publish("ping", {}, reply_ticket="ticket")
        eventually(lambda: client.llen(queue.name))
        eventually(lambda: 0 < int(client.ttl(queue.name)) <= REPLY_TTL_SECONDS)
