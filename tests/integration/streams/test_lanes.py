"""Streams with real workers of both lanes and a simulated provider."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from primarch_fleet import (
    AsyncFleet,
    Chunk,
    CompletionRequest,
    EmbeddingRequest,
    Fleet,
    ResponsesRequest,
    Ticket,
    errors,
)
from primarch_fleet.requests import Request
from primarch_fleet.streaming import READ_SECONDS, stream_key
from primarch_fleet.ticket import task_id
from tests.support.redis_server import RedisServer
from tests.support.workers import StartWorker, Worker
from workers.onebox.simulator.profile import Fault, Latency, Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

#: A provider that takes seconds for an answer, so that a test can break things meanwhile.
SLOW = Profile(latency=Latency(time_per_token=0.1))
LONG_QUESTION = " ".join(f"w{number}" for number in range(20))
TIMEOUT_SECONDS = 60.0
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REALTIME, LOCAL = "gpt-4o-mini", "smollm2-135m"


class Lanes(ExitStack):
    """A worker for each lane, and the provider of the realtime lane."""

    def __init__(self, simulator: Simulator, url: str, start_worker: StartWorker) -> None:
        super().__init__()
        self.simulator, self.url = simulator, url
        self._start_worker = start_worker
        self._env = {
            "FLEET_REDIS_URL": url,
            "FLEET_VISIBILITY_TIMEOUT": "2",
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }

        self.local = self.start("local", "stream-local")
        self.realtime = self.start("realtime", "stream-realtime")

    def start(self, lane: str, name: str, *, wait: bool = True) -> Worker:
        app = f"workers.{lane}.app"
        return self.enter_context(self._start_worker(name, app=app, env=self._env, wait=wait))


@pytest.fixture(scope="module")
def lanes(valkey_url: str, start_worker: StartWorker) -> Iterator[Lanes]:
    """Shared by all tests, which must not empty Redis: it stores the workers' catalogue."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    with Simulator(Profile()) as simulator, Lanes(simulator, valkey_url, start_worker) as lanes:
        yield lanes


@pytest.fixture
def fleet(lanes: Lanes) -> Iterator[Fleet]:
    lanes.simulator.profile = Profile()
    with Fleet(lanes.url) as fleet:
        yield fleet


def question(model: str = REALTIME, text: str = LONG_QUESTION) -> CompletionRequest:
    return CompletionRequest(model=model, messages=[{"role": "user", "content": text}])


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(("model", "lane"), [(REALTIME, "realtime"), (LOCAL, "local")])
def test_an_answer_is_available_as_chunks_and_as_a_whole(
    fleet: Fleet, model: str, lane: str
) -> None:
    stream = fleet.stream(question(model), timeout=TIMEOUT_SECONDS)
    chunks = list(stream)
    completion = stream.result(TIMEOUT_SECONDS)
    assert text(chunks) == completion.text != ""
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert completion.receipt.lane == lane
    assert completion.receipt.time_to_first_token is not None
    assert list(stream) == []
    assert list(fleet.stream(stream.ticket, timeout=TIMEOUT_SECONDS)) == chunks


def test_a_result_has_the_log_probabilities_and_the_reasoning_of_all_chunks(
    fleet: Fleet, lanes: Lanes
) -> None:
    reasoned = {"choices": [{"message": {"reasoning": "let me think"}}]}
    lanes.simulator.script(Script(contains="row of reasoning", merge=reasoned))
    request = question(text="row of reasoning").model_copy(update={"logprobs": True})
    stream = fleet.stream(request, timeout=TIMEOUT_SECONDS)
    chunks = list(stream)
    (choice,) = stream.result(TIMEOUT_SECONDS).body["choices"]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(tokens) == choice["message"]["content"] == text(chunks)
    assert choice["message"]["reasoning_content"] == "let me think"


@pytest.mark.parametrize("model", [REALTIME, LOCAL])
def test_a_response_is_available_as_events_and_as_a_whole(fleet: Fleet, model: str) -> None:
    request = ResponsesRequest(model=model, input=LONG_QUESTION)
    stream = fleet.stream(request, timeout=TIMEOUT_SECONDS)
    chunks = list(stream)
    completion = stream.result(TIMEOUT_SECONDS)
    for chunk in chunks:
        EVENT.validate_python(chunk.body)
    assert text(chunks) == completion.text != ""
    assert chunks[-1].body["response"] == completion.body
    assert list(fleet.stream(stream.ticket, after=chunks[2].id)) == chunks[3:]


def test_requests_of_all_kinds_are_submitted_together(fleet: Fleet) -> None:
    requests: list[Request] = [
        question(),
        ResponsesRequest(model=REALTIME, input="Hello", cache_ttl=60),
        EmbeddingRequest(model="text-embedding-3-small", input="Hello"),
        ResponsesRequest(model=LOCAL, input="Hello", max_output_tokens=50),
    ]
    tickets = fleet.submit_many(requests)
    first = [fleet.result(ticket, TIMEOUT_SECONDS) for ticket in tickets]
    assert [answer.receipt.lane for answer in first] == ["realtime"] * 3 + ["local"]
    [again] = fleet.submit_many([requests[1]])
    cached = fleet.result(again, TIMEOUT_SECONDS)
    assert (cached.receipt.cached, cached.body) == (True, first[1].body)


def test_a_response_that_is_cancelled_ends_its_stream(fleet: Fleet, lanes: Lanes) -> None:
    lanes.simulator.profile = SLOW
    stream = fleet.stream(ResponsesRequest(model=REALTIME, input=LONG_QUESTION), timeout=20)
    while not next(stream).text:
        pass
    assert fleet.cancel(stream.ticket, timeout=20)
    with pytest.raises(errors.Cancelled):
        list(stream)


def test_the_first_chunk_arrives_before_the_answer_is_complete(fleet: Fleet, lanes: Lanes) -> None:
    lanes.simulator.profile = SLOW
    stream = fleet.stream(question(), timeout=TIMEOUT_SECONDS)
    first = next(stream)
    assert fleet.status(stream.ticket) != "SUCCESS"
    assert text([first, *stream]) == stream.result(TIMEOUT_SECONDS).text


def test_asyncio_streams_from_both_lanes_concurrently(fleet: Fleet, lanes: Lanes) -> None:
    async def ask(other: AsyncFleet, model: str, number: int) -> bool:
        stream = await other.stream(question(model, f"number {number}"), timeout=TIMEOUT_SECONDS)
        chunks = [chunk async for chunk in stream]
        return text(chunks) == (await stream.result(TIMEOUT_SECONDS)).text != ""

    async def run() -> list[bool]:
        async with AsyncFleet(lanes.url) as other:
            models = zip(itertools.cycle((REALTIME, LOCAL)), range(20), strict=False)
            return await asyncio.gather(*(ask(other, model, number) for model, number in models))

    assert asyncio.run(run()) == [True] * 20


def test_a_hundred_successive_readers_miss_and_repeat_nothing(fleet: Fleet, lanes: Lanes) -> None:
    """Each reader reads up to two chunks with a connection of its own."""
    lanes.simulator.profile = SLOW
    ticket = fleet.submit(question().model_copy(update={"stream": True}))
    chunks: list[Chunk] = []
    readers, ended = 0, False
    while not ended:
        readers += 1
        with Fleet(lanes.url) as other:
            after = chunks[-1].id if chunks else None
            stream = other.stream(ticket.id, after=after, timeout=TIMEOUT_SECONDS)
            taken = list(itertools.islice(stream, readers % 3))
        chunks += taken
        ended = readers % 3 > len(taken)
    while readers < 100:
        readers += 1
        start = readers % len(chunks)
        with Fleet(lanes.url) as other:
            rest = other.stream(ticket.id, after=chunks[start].id, timeout=TIMEOUT_SECONDS)
            assert list(rest) == chunks[start + 1 :]
    assert chunks == list(fleet.stream(ticket, timeout=TIMEOUT_SECONDS))
    assert text(chunks) == fleet.result(ticket, TIMEOUT_SECONDS).text


def test_a_restart_of_valkey_only_pauses_a_stream(
    fleet: Fleet, lanes: Lanes, valkey: RedisServer
) -> None:
    lanes.simulator.profile = SLOW
    stream = fleet.stream(question(), timeout=TIMEOUT_SECONDS)
    early = list(itertools.islice(stream, 3))
    valkey.kill()
    valkey.start()
    chunks = early + list(stream)
    assert text(chunks) == stream.result(TIMEOUT_SECONDS).text
    assert list(fleet.stream(stream.ticket, timeout=TIMEOUT_SECONDS)) == chunks
    assert lanes.simulator.stats()["calls"]["chat.completions"]["200"] >= 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(drop="mid_stream"), errors.ProviderUnavailable),
        (Fault(status=400, message="no"), errors.ProviderError),
    ],
)
def test_a_failing_provider_raises_the_same_error_for_readers_and_result(
    fleet: Fleet, lanes: Lanes, fault: Fault, kind: type[errors.FleetError]
) -> None:
    lanes.simulator.profile = Profile(faults=(fault,))
    stream = fleet.stream(question(), timeout=TIMEOUT_SECONDS)
    with pytest.raises(kind) as read:
        list(stream)
    with pytest.raises(kind) as asked:
        stream.result(TIMEOUT_SECONDS)
    assert str(read.value) == str(asked.value)


def test_a_deadline_during_an_answer_ends_its_stream(fleet: Fleet, lanes: Lanes) -> None:
    lanes.simulator.profile = SLOW
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    with pytest.raises(errors.DeadlineExceeded):
        list(
            fleet.stream(question().model_copy(update={"deadline": soon}), timeout=TIMEOUT_SECONDS)
        )


def test_the_stream_of_an_answer_that_was_not_streamed_ends_at_once(fleet: Fleet) -> None:
    plain = fleet.submit(question())
    fleet.result(plain, TIMEOUT_SECONDS)
    started = time.monotonic()
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        list(fleet.stream(plain))
    assert time.monotonic() - started < READ_SECONDS


def test_a_stream_that_has_expired_ends_at_once(fleet: Fleet, lanes: Lanes) -> None:
    stream = fleet.stream(question(LOCAL), timeout=TIMEOUT_SECONDS)
    assert text(list(stream)) == stream.result(TIMEOUT_SECONDS).text
    backend: Any = fleet.app.backend
    result_key = backend.get_key_for_task(task_id(stream.ticket))
    with redis.Redis.from_url(lanes.url) as store:
        store.delete(stream_key(task_id(stream.ticket)))
        result = json.loads(store.get(result_key))
        store.set(result_key, json.dumps(result | {"date_done": "2026-01-01T00:00:00+00:00"}))
    started = time.monotonic()
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        list(fleet.stream(stream.ticket))
    assert time.monotonic() - started < READ_SECONDS


def test_a_revoked_task_ends_its_stream(fleet: Fleet, lanes: Lanes) -> None:
    lanes.simulator.profile = SLOW
    stream = fleet.stream(question(), timeout=TIMEOUT_SECONDS)
    next(stream)
    fleet.app.control.revoke(task_id(stream.ticket), terminate=True)
    with pytest.raises(errors.Cancelled):
        list(stream)


def test_a_request_that_a_worker_rejects_fails_its_readers(fleet: Fleet) -> None:
    """A request of a plain Celery producer, which no client has checked."""
    broken = fleet.app.send_task("realtime.complete", [{"model": 7}], queue="realtime", priority=3)
    with pytest.raises(errors.InvalidRequest, match="model"):
        list(fleet.stream(str(broken.id), timeout=TIMEOUT_SECONDS))


def test_a_killed_worker_interrupts_its_readers_and_another_worker_answers(
    fleet: Fleet, lanes: Lanes
) -> None:
    lanes.simulator.profile = SLOW
    stream = fleet.stream(question(), timeout=TIMEOUT_SECONDS)
    early = list(itertools.islice(stream, 3))
    lanes.realtime.kill()
    lanes.realtime = lanes.start("realtime", "stream-rescuer", wait=False)
    with pytest.raises(errors.StreamInterrupted) as caught:
        list(stream)
    assert caught.value.retryable
    with pytest.raises(errors.StreamInterrupted):
        list(fleet.stream(stream.ticket, after=early[-1].id, timeout=TIMEOUT_SECONDS))
    chunks = list(fleet.stream(stream.ticket, timeout=TIMEOUT_SECONDS))
    assert chunks[:3] != early
    assert text(chunks) == stream.result(TIMEOUT_SECONDS).text


def test_reading_an_unknown_ticket_times_out(fleet: Fleet) -> None:
    with pytest.raises(errors.ResultTimeout):
        list(fleet.stream(Ticket("unknown", "realtime", "asked for", "realtime"), timeout=0.5))
