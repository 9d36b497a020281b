"""The local lane's server with the simulated engine."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import Reject
from openai.types.chat import ChatCompletion

from config.engine import EngineConfig
from config.requests import RequestPolicy
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, errors
from primarch_fleet.requests.base import PROVIDER_NAMES
from tasks.privacy import Privacy
from tasks.receipts import RequestMetadata
from tasks.usage_meter import UsageMeter
from tests.support import parameters
from tests.support.engines import CountingSleep
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
METADATA = RequestMetadata(task_id="task", trace_id="trace", reason="hosted here", queue_wait=0.1)


class RecordingWriter(StreamWriter):
    """Records the chunks of its one stream, and how the stream ended."""

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
    stop: Callable[[], None] = lambda: pytest.fail("the engine is alive"),
) -> LocalServer:
    return LocalServer(CONFIG, engine, streams or RecordingWriter(), stop)


def request(text: str = "one two three", **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(**{"model": "small", "messages": messages} | fields)


def test_a_simulated_engines_receipt_says_so_and_has_both_costs() -> None:
    server = local_server(SimulatedEngine(CONFIG))
    answer = asyncio.run(server.serve(request(), METADATA))
    receipt = answer.receipt
    assert receipt.simulated
    assert (receipt.lane, receipt.provider, receipt.strategy) == ("local", "local", "simulated")
    assert receipt.reason == "hosted here"
    assert receipt.input_tokens == 3
    assert receipt.cost == 3 + 2 * receipt.output_tokens
    assert receipt.list_cost_nanousd == 10 * receipt.cost_nanousd
    assert receipt.time_to_first_token is not None
    assert 0 < receipt.time_to_first_token <= receipt.latency


def test_requests_run_in_the_engine_together_up_to_max_num_seqs() -> None:
    sleep = CountingSleep()

    async def run() -> list[Completion]:
        server = local_server(SimulatedEngine(CONFIG, sleep))
        return await asyncio.gather(
            *(server.serve(request(f"question {number}"), METADATA) for number in range(40))
        )

    answers = asyncio.run(run())
    assert len({answer.text for answer in answers}) == 40
    assert sleep.max_running == CONFIG.max_num_seqs


class DyingEngine(SimulatedEngine):
    """Fails on every request, and dies of it if `dies`."""

    def __init__(self, dies: bool) -> None:
        super().__init__(CONFIG)
        self._dies = dies

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        self.dead = self._dies
        raise errors.EngineError("the core is gone")

    async def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        async for chunk in super().stream(endpoint, body, priority):
            yield chunk
            await self.answer(endpoint, body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_engine_dies_is_requeued_and_the_worker_stops(
    stream: bool,
) -> None:
    stopped: list[bool] = []
    writer = RecordingWriter()
    server = local_server(DyingEngine(dies=True), writer, stop=lambda: stopped.append(True))
    with pytest.raises(Reject) as caught:
        asyncio.run(server.serve(request(stream=stream), METADATA))
    assert caught.value.requeue  # type: ignore[attr-defined]
    assert stopped == [True]
    assert writer.ended == ("failed" if stream else None)


class RefusingEngine(SimulatedEngine):
    """Refuses every request, as vLLM does with status 400."""

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        raise errors.InvalidRequest("a parameter of vLLM's")

    async def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        await self.answer(endpoint, body)
        yield {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_engine_refuses_costs_nothing(stream: bool) -> None:
    asked = request(stream=stream)
    meter = UsageMeter()
    token = meter.activate()
    try:
        with pytest.raises(errors.InvalidRequest, match="vLLM"):
            asyncio.run(local_server(RefusingEngine(CONFIG)).serve(asked, METADATA))
    finally:
        meter.deactivate(token)
    [attempt] = meter.failed_attempts(asked)
    assert (attempt.error, attempt.cost_nanousd) == ("invalid_request", 0)


def test_a_failure_that_the_engine_survives_fails_only_its_request() -> None:
    server = local_server(DyingEngine(dies=False))
    with pytest.raises(errors.EngineError):
        asyncio.run(server.serve(request(), METADATA))


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (request(model="other"), "serves only small"),
        (EmbeddingRequest(model="small", input="x"), "serves only small, for chat"),
    ],
)
def test_a_request_that_the_engine_cannot_serve_is_invalid(invalid: Any, message: str) -> None:
    server = local_server(SimulatedEngine(CONFIG))
    with pytest.raises(errors.InvalidRequest, match=message):
        asyncio.run(server.serve(invalid, METADATA))


def test_a_prompt_that_is_too_long_for_the_engine_exceeds_the_context_window() -> None:
    server = local_server(SimulatedEngine(CONFIG))
    with pytest.raises(errors.ContextWindowExceeded, match="messages: 200 tokens"):
        asyncio.run(server.serve(request("word " * 200), METADATA))


def test_a_streamed_answer_equals_the_plain_answer_and_the_text_of_its_chunks() -> None:
    async def run() -> tuple[Completion, Completion]:
        server = local_server(SimulatedEngine(CONFIG), writer)
        plain = await server.serve(request(), METADATA)
        return plain, await server.serve(request(stream=True), METADATA)

    writer = RecordingWriter()
    plain, streamed = asyncio.run(run())
    content = [chunk["choices"][0]["delta"].get("content", "") for chunk in writer.chunks]
    assert writer.ended == "ok"
    assert "".join(content) == streamed.text == plain.text
    assert streamed.body["choices"] == plain.body["choices"]
    assert streamed.receipt.cost_nanousd == plain.receipt.cost_nanousd
    assert streamed.receipt.time_to_first_token is not None
    assert 0 < streamed.receipt.time_to_first_token <= streamed.receipt.latency


class FailingEngine(SimulatedEngine):
    """Its generations are aborted after some tokens."""

    async def answer(self, *call: Any) -> Answer:
        answer = await super().answer(*call)
        answer.body["choices"][0]["finish_reason"] = "abort"
        return answer

    async def stream(self, *call: Any) -> AsyncIterator[dict[str, Any]]:
        async for chunk in super().stream(*call):
            for choice in chunk["choices"]:
                choice["finish_reason"] = choice["finish_reason"] and "abort"
            yield chunk


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_that_failed_is_no_answer_and_costs_its_usage(stream: bool) -> None:
    writer, meter = RecordingWriter(), UsageMeter()
    server = local_server(FailingEngine(CONFIG), writer)
    asked = request(stream=stream)

    async def serve() -> None:
        token = meter.activate()
        with pytest.raises(errors.EngineError, match="abort"):
            await server.serve(asked, METADATA)
        meter.deactivate(token)

    asyncio.run(serve())
    [attempt] = meter.failed_attempts(asked)
    assert (attempt.error, attempt.input_tokens, attempt.estimated) == ("engine_error", 3, False)
    assert attempt.cost_nanousd == 1_000 * (3 + 2 * attempt.output_tokens)
    assert attempt.output_tokens > 0
    assert writer.ended == ("failed" if stream else None)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_has_one_name_streamed_or_not(stream: bool) -> None:
    config = CONFIG.model_copy(update={"reasoning_parser": "deepseek_r1"})
    writer = RecordingWriter()
    server = local_server(SimulatedEngine(config), writer)
    body = asyncio.run(server.serve(request(stream=stream), METADATA)).body
    ChatCompletion.model_validate(body, strict=True)
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == "Simulated reasoning"
    assert "reasoning" not in message
    assert message["content"].startswith("Simulated answer")
    deltas = [part["delta"] for chunk in writer.chunks for part in chunk["choices"]]
    assert all("reasoning" not in delta for delta in deltas)
    streamed = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert streamed == ("Simulated reasoning" if stream else "")


def test_a_request_without_stream_publishes_no_stream() -> None:
    writer = RecordingWriter()
    asyncio.run(local_server(SimulatedEngine(CONFIG), writer).serve(request(), METADATA))
    assert writer.ended is None


def test_a_request_that_arrives_at_a_dead_engine_waits_until_the_worker_stops() -> None:
    """It was not tried: its message returns without counting an attempt, as in any shutdown."""
    stopped: list[bool] = []

    async def run() -> None:
        engine = DyingEngine(dies=True)
        engine.dead = True
        server = local_server(engine, stop=lambda: stopped.append(True))
        waiting = [asyncio.create_task(server.serve(request(), METADATA)) for _ in range(3)]
        done, _ = await asyncio.wait(waiting, timeout=0.05)
        assert not done
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(run())
    assert stopped == [True]


def test_an_engine_that_dies_while_idle_stops_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.local.server.WATCH_INTERVAL_SECONDS", 0.001)

    async def run() -> None:
        engine, stopped = SimulatedEngine(CONFIG), asyncio.Event()
        server = local_server(engine, ConnectionlessWriter(), stop=stopped.set)
        server.start()
        await asyncio.sleep(0.01)
        assert not stopped.is_set()
        engine.dead = True
        async with asyncio.timeout(5):
            await stopped.wait()
        await server.close()

    asyncio.run(run())


class ConnectionlessWriter(RecordingWriter):
    async def close(self) -> None:
        """Do nothing: there is no connection."""


def test_waiting_requests_run_by_priority_and_then_in_order_of_arrival() -> None:
    finished: list[str] = []

    async def ask(server: LocalServer, name: str, **fields: Any) -> None:
        await server.serve(request(name, **fields), METADATA)
        finished.append(name)

    async def run() -> None:
        server = local_server(SimulatedEngine(CONFIG))
        async with asyncio.TaskGroup() as group:
            for number in range(CONFIG.max_num_seqs):
                group.create_task(ask(server, f"early {number}"))
            for priority in ("low", "normal", "high"):
                for number in range(2):
                    group.create_task(ask(server, f"{priority} {number}", priority=priority))

    asyncio.run(run())
    waited = finished[CONFIG.max_num_seqs :]
    assert waited == ["high 0", "high 1", "normal 0", "normal 1", "low 0", "low 1"]


def test_cancelling_a_request_that_waits_for_a_slot_loses_no_slot() -> None:
    async def run() -> None:
        engine = SimulatedEngine(CONFIG)
        server = local_server(engine)
        calls = [asyncio.create_task(server.serve(request(f"{n}"), METADATA)) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.wait(calls)
        assert engine.running == 0
        await server.serve(request(), METADATA)

    asyncio.run(run())


def test_an_engine_that_is_not_installed_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "workers.local.engines.vllm", None)
    config = CONFIG.model_copy(update={"engine": "vllm"})
    with pytest.raises(errors.ConfigError, match=r"small: vllm is not installed.*make engine"):
        asyncio.run(engines.start(config))


class RecordingEngine(SimulatedEngine):
    """Records the bodies of its requests."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        self.bodies.append(body)
        return await super().answer(endpoint, body, priority)


#: Parameters of the SDK that no engine has.
NOT_FOR_ENGINES = {
    *("audio", "function_call", "functions", "modalities", "moderation", "prediction"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "provider_metadata"),
    *("safety_identifier", "service_tier", "store", "verbosity", "web_search_options"),
}


def test_each_parameter_reaches_the_engine_or_is_refused_by_name() -> None:
    engine = RecordingEngine()
    fields = {name: {name: value} for name, value in parameters.CHAT.items()}
    extra = {name: {"extra_body": {name: value}} for name, value in parameters.ENGINE.items()}
    del fields["stream"], fields["stream_options"]

    async def run() -> set[str]:
        refused = set()
        server = local_server(engine)
        for name, changes in (fields | extra).items():
            try:
                await server.serve(request(**changes), METADATA)
            except errors.InvalidRequest as error:
                assert (PROVIDER_NAMES.get(name) or name) in str(error)
                refused.add(name)
        return refused

    assert asyncio.run(run()) == NOT_FOR_ENGINES
    sent = {name: value for body in engine.bodies for name, value in body.items()}
    expected = {
        name: value
        for name, value in (parameters.CHAT | parameters.ENGINE).items()
        if name not in NOT_FOR_ENGINES | {"stream", "stream_options"}
    }
    assert {name: sent[name] for name in expected} == expected


def test_the_engine_refuses_a_provider_s_parameter_by_name() -> None:
    server = local_server(SimulatedEngine(CONFIG))
    wrong = request(extra_body={"thinking": {"type": "enabled"}})
    with pytest.raises(errors.InvalidRequest, match=r"^thinking: "):
        asyncio.run(server.serve(wrong, METADATA))


def test_tenants_have_their_own_prefix_cache_in_the_engine() -> None:
    engine = RecordingEngine()
    privacy = Privacy(RequestPolicy(), b"key")
    server = LocalServer(CONFIG, engine, RecordingWriter(), lambda: None, privacy)

    async def run() -> None:
        for tenant in ("a", "b", "a"):
            await server.serve(request(tenant_id=tenant, user_id="ann"), METADATA)

    asyncio.run(run())
    first, second, third = (body["cache_salt"] for body in engine.bodies)
    assert first == third != second
    assert "ann" not in str(engine.bodies)


@pytest.mark.parametrize("wants_usage", [False, True])
def test_readers_get_the_usage_chunk_on_request(wants_usage: bool) -> None:
    writer = RecordingWriter()
    server = local_server(SimulatedEngine(CONFIG), writer)
    asked = request(stream=True, stream_options={"include_usage": wants_usage})
    asyncio.run(server.serve(asked, METADATA))
    assert any(chunk.get("usage") for chunk in writer.chunks) is wants_usage
