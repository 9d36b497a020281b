"""What every engine guarantees, tested on the simulated one and, where installed, on vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from primarch_fleet.errors import ContextWindowExceeded, InvalidRequest
from tests.support.engines import (
    CHAT,
    EMBEDDINGS,
    ENGINES,
    Subject,
    config,
    processes,
    question,
    text,
)
from tests.support.workers import eventually
from workers.local import engines
from workers.local.engines.base import Answer
from workers.stream_assembler import ChatAssembler

CONCURRENT = 16


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    subject = Subject(request.param)
    yield subject
    subject.close()


def test_an_answer_has_the_form_of_openais_chat_completion(subject: Subject) -> None:
    completion = ChatCompletion.model_validate(subject.chat().body)
    assert (completion.object, completion.model) == ("chat.completion", "tested")
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content


def test_total_tokens_is_the_sum_of_prompt_and_completion_tokens(subject: Subject) -> None:
    usage = subject.chat().body["usage"]
    assert min(usage["prompt_tokens"], usage["completion_tokens"]) > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_time_to_first_token_is_shorter_than_the_latency(subject: Subject) -> None:
    started = time.perf_counter()
    time_to_first_token = subject.chat().time_to_first_token
    assert time_to_first_token is not None
    assert 0 < time_to_first_token < time.perf_counter() - started


def test_max_tokens_ends_an_answer_with_finish_reason_length(subject: Subject) -> None:
    body = subject.chat(max_tokens=2).body
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


def test_n_returns_n_choices(subject: Subject) -> None:
    choices = subject.chat(n=3, max_tokens=4, temperature=1).body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"temperature": 1, "seed": 7}])
def test_the_same_request_gets_the_same_text(subject: Subject, parameters: dict[str, Any]) -> None:
    assert text(subject.chat(**parameters)) == text(subject.chat(**parameters))


def test_concurrent_requests_run_in_the_engine_together(subject: Subject) -> None:
    async def ask_all() -> tuple[list[Answer], int]:
        calls = [
            subject.engine.answer(CHAT, question(f"Name {i} animals")) for i in range(CONCURRENT)
        ]
        answers, max_running = asyncio.gather(*calls), 0
        while not answers.done():
            max_running = max(max_running, subject.engine.running)
            await asyncio.sleep(0.001)
        return await answers, max_running

    answers, max_running = subject.run(ask_all())
    assert all(text(answer) for answer in answers)
    assert max_running == CONCURRENT


def test_a_prompt_longer_than_the_context_is_refused_for_its_length(subject: Subject) -> None:
    with pytest.raises(ContextWindowExceeded, match="2048"):
        subject.chat("word " * 3000)


def test_an_unsupported_parameter_is_refused_by_name(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="service_tier"):
        subject.chat(service_tier="flex")


def test_a_cancelled_call_leaves_the_engine(subject: Subject) -> None:
    async def ask_and_cancel() -> None:
        call = asyncio.create_task(
            subject.engine.answer(CHAT, question("Count to 1000", max_tokens=1500))
        )
        while not subject.engine.running:  # noqa: ASYNC110 - engines send no event
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert subject.engine.running == 0

    subject.run(ask_and_cancel())


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0},
        {"temperature": 0, "max_tokens": 2},
        {"temperature": 1, "seed": 7, "n": 2, "max_tokens": 4},
    ],
)
def test_an_assembled_stream_equals_the_plain_answer(
    subject: Subject, parameters: dict[str, Any]
) -> None:
    chunks = subject.stream(**parameters)
    assembler = ChatAssembler()
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        assembler.add(chunk)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]
    assert all(chunk["choices"] for chunk in chunks[:-1])
    answer = subject.chat(**parameters).body
    assert comparable(assembler.body()) == comparable(answer)


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without the fields that differ between calls, and without nulls."""
    completion = ChatCompletion.model_validate(body)
    return completion.model_dump(exclude={"id", "created"}, exclude_none=True)


def test_a_stream_of_a_prompt_longer_than_the_context_is_refused_for_its_length(
    subject: Subject,
) -> None:
    with pytest.raises(ContextWindowExceeded, match="2048"):
        subject.stream("word " * 3000)


@pytest.mark.parametrize("cancel", [False, True])
def test_a_stream_that_is_cancelled_or_closed_leaves_the_engine(
    subject: Subject, cancel: bool
) -> None:
    async def read_and_stop() -> None:
        chunks = subject.engine.stream(CHAT, question("Count to 1000", max_tokens=1500))
        await anext(chunks)
        if cancel:
            reader = asyncio.create_task(read_to_end(chunks))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        else:
            await chunks.aclose()
        assert subject.engine.running == 0

    async def read_to_end(chunks: Any) -> None:
        async for _ in chunks:
            pass

    subject.run(read_and_stop())


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_embeds_and_leaves_no_process_after_close(name: str) -> None:
    async def embed_and_close() -> dict[str, Any]:
        engine = await engines.start(config(name, kind="embedding"))
        try:
            return (
                await engine.answer(EMBEDDINGS, {"model": "tested", "input": ["one", "two"]})
            ).body
        finally:
            await engine.close()

    resource_tracker.ensure_running()  # Python's own process, which keeps running
    before = processes()
    response = CreateEmbeddingResponse.model_validate(asyncio.run(embed_and_close()))
    assert [data.index for data in response.data] == [0, 1]
    assert response.usage.prompt_tokens == response.usage.total_tokens > 0
    eventually(lambda: processes() <= before)  # killed processes take a moment to end
