"""The local lane's server with the simulated engine: one engine, fed by all requests at once."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import Reject

from config.engine import EngineConfig
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, errors
from tasks.serving import RequestMetadata
from workers.local import engines
from workers.local.engines.base import Answer
from workers.local.engines.simulated import SimulatedEngine
from workers.local.server import LocalServer
from workers.stream_writer import Publish, StreamWriter

CONFIG = EngineConfig.model_validate(
    {
        "model": "small",
        "engine": "simulated",
        "price": {"input": 1, "output": 2},
        "list_price": {"input": 10, "output": 20},
        "max_num_seqs": 8,
        "max_model_len": 100,
    }
)
ENVELOPE = RequestMetadata(task_id="task", trace_id="trace", reason="hosted here", queue_wait=0.1)


class Heard(StreamWriter):
    """Keeps the chunks of the one stream that goes through it, and how it ended."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.ended: str | None = None

    @contextmanager
    def run(self, task_id: str) -> Iterator[Publish]:
        self.ended = "failed"
        yield self.chunks.append
        self.ended = "ok"


def local_server(
    engine: SimulatedEngine,
    streams: StreamWriter | None = None,
    stop: Callable[[], None] = lambda: pytest.fail("it lives"),
) -> LocalServer:
    return LocalServer(CONFIG, engine, streams or Heard(), stop)


def request(text: str = "one two three", **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(**{"model": "small", "messages": messages} | fields)


def test_the_receipt_says_that_nothing_real_answered_and_what_it_would_have_cost() -> None:
    server = local_server(SimulatedEngine(CONFIG))
    answer = asyncio.run(server.serve(request(), ENVELOPE))
    receipt = answer.receipt
    assert receipt.simulated
    assert (receipt.lane, receipt.provider, receipt.strategy) == ("local", "local", "simulated")
    assert receipt.reason == "hosted here"
    assert receipt.input_tokens == 3
    assert receipt.cost == 3 + 2 * receipt.output_tokens
    assert receipt.list_cost == 10 * receipt.cost
    assert receipt.time_to_first_token is not None
    assert 0 < receipt.time_to_first_token <= receipt.latency


def test_requests_enter_the_one_engine_together_and_never_more_than_its_seats() -> None:
    async def run() -> tuple[list[Completion], int]:
        engine = SimulatedEngine(CONFIG)
        server = local_server(engine)
        answers = await asyncio.gather(
            *(server.serve(request(f"question {number}"), ENVELOPE) for number in range(40))
        )
        return answers, engine.most_running

    answers, most_running = asyncio.run(run())
    assert len({answer.text for answer in answers}) == 40
    assert most_running == CONFIG.max_num_seqs


class DyingEngine(SimulatedEngine):
    """Fails, and is alive or dead after it."""

    def __init__(self, dies: bool) -> None:
        super().__init__(CONFIG)
        self._dies = dies

    async def chat(self, body: dict[str, Any], priority: int = 0) -> Answer:
        self.dead = self._dies
        raise errors.EngineError("the core is gone")

    async def stream(
        self, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        async for chunk in super().stream(body, priority):
            yield chunk
            await self.chat(body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_gives_its_request_back_and_ends_its_worker(stream: bool) -> None:
    stopped: list[bool] = []
    heard = Heard()
    server = local_server(DyingEngine(dies=True), heard, stop=lambda: stopped.append(True))
    with pytest.raises(Reject) as caught:
        asyncio.run(server.serve(request(stream=stream), ENVELOPE))
    assert caught.value.requeue  # type: ignore[attr-defined]
    assert stopped == [True]
    assert heard.ended == ("failed" if stream else None)


def test_a_failure_that_the_engine_survives_is_the_requests_own() -> None:
    server = local_server(DyingEngine(dies=False))
    with pytest.raises(errors.EngineError):
        asyncio.run(server.serve(request(), ENVELOPE))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (request(model="other"), "serves small"),
        (EmbeddingRequest(model="small", input="x"), "serves small for chat"),
        (request("word " * 200), "messages: 200 tokens"),
    ],
)
def test_what_the_engine_cannot_do_is_said_by_the_field(wrong: Any, words: str) -> None:
    server = local_server(SimulatedEngine(CONFIG))
    with pytest.raises(errors.InvalidRequest, match=words):
        asyncio.run(server.serve(wrong, ENVELOPE))


def test_a_streamed_answer_is_the_same_answer_and_its_chunks_are_its_text() -> None:
    async def run() -> tuple[Completion, Completion]:
        server = local_server(SimulatedEngine(CONFIG), heard)
        plain = await server.serve(request(), ENVELOPE)
        return plain, await server.serve(request(stream=True), ENVELOPE)

    heard = Heard()
    plain, streamed = asyncio.run(run())
    content = [chunk["choices"][0]["delta"].get("content", "") for chunk in heard.chunks]
    assert heard.ended == "ok"
    assert "".join(content) == streamed.text == plain.text
    assert streamed.body["choices"] == plain.body["choices"]
    assert streamed.receipt.cost == plain.receipt.cost
    assert streamed.receipt.time_to_first_token is not None
    assert 0 < streamed.receipt.time_to_first_token <= streamed.receipt.latency


def test_a_request_that_does_not_stream_writes_no_stream() -> None:
    heard = Heard()
    asyncio.run(local_server(SimulatedEngine(CONFIG), heard).serve(request(), ENVELOPE))
    assert heard.ended is None


def test_a_request_that_comes_to_a_dead_engine_waits_for_the_end_of_the_worker() -> None:
    """It has not been tried: the message must go back uncounted, as those of any worker's end."""
    stopped: list[bool] = []

    async def run() -> None:
        engine = DyingEngine(dies=True)
        engine.dead = True
        server = local_server(engine, stop=lambda: stopped.append(True))
        waiting = [asyncio.create_task(server.serve(request(), ENVELOPE)) for _ in range(3)]
        done, _ = await asyncio.wait(waiting, timeout=0.05)
        assert not done
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(run())
    assert stopped == [True]


def test_an_engine_that_dies_while_nobody_asks_ends_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.local.server.WATCH_INTERVAL", 0.001)

    async def run() -> None:
        engine, stopped = SimulatedEngine(CONFIG), asyncio.Event()
        server = local_server(engine, Closed(), stop=stopped.set)
        server.start()
        await asyncio.sleep(0.01)
        assert not stopped.is_set()
        engine.dead = True
        async with asyncio.timeout(5):
            await stopped.wait()
        await server.close()

    asyncio.run(run())


class Closed(Heard):
    async def close(self) -> None:
        """There is no connection."""


def test_of_those_that_wait_the_most_urgent_go_first_in_the_order_they_came() -> None:
    ended: list[str] = []

    async def ask(server: LocalServer, name: str, **fields: Any) -> None:
        await server.serve(request(name, **fields), ENVELOPE)
        ended.append(name)

    async def run() -> None:
        server = local_server(SimulatedEngine(CONFIG))
        async with asyncio.TaskGroup() as group:
            for number in range(CONFIG.max_num_seqs):
                group.create_task(ask(server, f"early {number}"))
            for priority in ("low", "normal", "high"):
                for number in range(2):
                    group.create_task(ask(server, f"{priority} {number}", priority=priority))

    asyncio.run(run())
    waited = ended[CONFIG.max_num_seqs :]
    assert waited == ["high 0", "high 1", "normal 0", "normal 1", "low 0", "low 1"]


def test_a_place_is_not_lost_with_a_caller_who_is_cancelled_while_waiting_for_it() -> None:
    async def run() -> None:
        engine = SimulatedEngine(CONFIG)
        server = local_server(engine)
        calls = [asyncio.create_task(server.serve(request(f"{n}"), ENVELOPE)) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.wait(calls)
        assert engine.running == 0
        await server.serve(request(), ENVELOPE)

    asyncio.run(run())


def test_an_engine_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.local.engines.vllm", None)
    config = CONFIG.model_copy(update={"engine": "vllm"})
    with pytest.raises(errors.ConfigError, match=r"small: this Python has no vllm.*make engine"):
        asyncio.run(engines.start(config))
