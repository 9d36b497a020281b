"""The local lane's server with the simulated engine: one engine, fed by all requests at once."""

import asyncio
from typing import Any

import pytest
from celery.exceptions import Reject

from config.fleet import Engine
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, errors
from tasks.servers import Envelope
from workers.local.engines.base import Answer
from workers.local.engines.simulated import SimulatedEngine
from workers.local.server import LocalServer

CONFIG = Engine.model_validate(
    {
        "model": "small",
        "engine": "simulated",
        "price": {"input": 1, "output": 2},
        "list_price": {"input": 10, "output": 20},
        "max_num_seqs": 8,
        "max_model_len": 100,
    }
)
ENVELOPE = Envelope(task_id="task", trace_id="trace", reason="hosted here", queue_wait=0.1)


def request(text: str = "one two three", **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(**{"model": "small", "messages": messages} | fields)


def test_the_receipt_says_that_nothing_real_answered_and_what_it_would_have_cost() -> None:
    server = LocalServer(CONFIG, SimulatedEngine(CONFIG))
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
        server = LocalServer(CONFIG, engine)
        answers = await asyncio.gather(
            *(server.serve(request(f"question {number}"), ENVELOPE) for number in range(40))
        )
        return answers, engine.most_running

    answers, most_running = asyncio.run(run())
    assert len({answer.text for answer in answers}) == 40
    assert most_running == CONFIG.max_num_seqs


class DyingEngine(SimulatedEngine):
    """Fails once, and is alive or dead after it."""

    def __init__(self, dead: bool) -> None:
        super().__init__(CONFIG)
        self.dead = dead

    async def chat(self, body: dict[str, Any]) -> Answer:
        raise errors.EngineError("the core is gone")


def test_a_dead_engine_gives_its_request_back_and_ends_its_worker() -> None:
    stopped: list[bool] = []
    server = LocalServer(CONFIG, DyingEngine(dead=True), stop=lambda: stopped.append(True))
    with pytest.raises(Reject) as caught:
        asyncio.run(server.serve(request(), ENVELOPE))
    assert caught.value.requeue  # type: ignore[attr-defined]
    assert stopped == [True]


def test_a_failure_that_the_engine_survives_is_the_requests_own() -> None:
    server = LocalServer(CONFIG, DyingEngine(dead=False), stop=lambda: pytest.fail("it lives"))
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
    server = LocalServer(CONFIG, SimulatedEngine(CONFIG))
    with pytest.raises(errors.InvalidRequest, match=words):
        asyncio.run(server.serve(wrong, ENVELOPE))
