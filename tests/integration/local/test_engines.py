"""What every engine promises, asked of the simulated one and, where there is one, of vLLM."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from primarch_fleet.errors import InvalidRequest
from tests.integration.conftest import eventually
from tests.support.engines import ENGINES, config
from workers.local import engines
from workers.local.engines.base import Answer
from workers.local.stream_assembler import StreamAssembler

CONCURRENT = 16


class Subject:
    """An engine on a loop of its own beside the main thread, as in a worker."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.engine: Any = self.run(engines.start(config(name, **changes)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def chat(self, content: str = "What is 2+2?", **parameters: Any) -> Answer:
        answer: Answer = self.run(self.engine.chat(question(content, **parameters)))
        return answer

    def stream(self, content: str = "What is 2+2?", **parameters: Any) -> list[dict[str, Any]]:
        async def collect() -> list[dict[str, Any]]:
            return [one async for one in self.engine.stream(question(content, **parameters))]

        chunks: list[dict[str, Any]] = self.run(collect())
        return chunks

    def close(self) -> None:
        self.run(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    subject = Subject(request.param)
    yield subject
    subject.close()


def question(content: str, **parameters: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "tested", "messages": messages, "max_tokens": 32, **parameters}


def text(answer: Answer) -> str:
    return str(answer.body["choices"][0]["message"]["content"])


def test_an_answer_is_a_chat_completion_of_openai(subject: Subject) -> None:
    completion = ChatCompletion.model_validate(subject.chat().body)
    assert (completion.object, completion.model) == ("chat.completion", "tested")
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content


def test_usage_adds_up(subject: Subject) -> None:
    usage = subject.chat().body["usage"]
    assert min(usage["prompt_tokens"], usage["completion_tokens"]) > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_first_token_comes_before_the_answer(subject: Subject) -> None:
    started = time.perf_counter()
    first = subject.chat().time_to_first_token
    assert first is not None
    assert 0 < first < time.perf_counter() - started


def test_max_tokens_ends_an_answer_and_says_so(subject: Subject) -> None:
    body = subject.chat(max_tokens=2).body
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


def test_n_gives_as_many_choices(subject: Subject) -> None:
    choices = subject.chat(n=3, max_tokens=4, temperature=1).body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"temperature": 1, "seed": 7}])
def test_the_same_request_gets_the_same_text(subject: Subject, parameters: dict[str, Any]) -> None:
    assert text(subject.chat(**parameters)) == text(subject.chat(**parameters))


def test_concurrent_requests_are_in_the_engine_together(subject: Subject) -> None:
    async def ask_all() -> tuple[list[Answer], int]:
        calls = [subject.engine.chat(question(f"Name {i} animals")) for i in range(CONCURRENT)]
        answers, most = asyncio.gather(*calls), 0
        while not answers.done():
            most = max(most, subject.engine.running)
            await asyncio.sleep(0.001)
        return await answers, most

    answers, most = subject.run(ask_all())
    assert all(text(answer) for answer in answers)
    assert most == CONCURRENT


def test_a_prompt_that_does_not_fit_is_an_invalid_request(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="2048"):
        subject.chat("word " * 3000)


def test_a_parameter_that_the_engine_does_not_have_is_refused_by_name(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="service_tier"):
        subject.chat(service_tier="flex")


def test_a_cancelled_call_frees_its_place(subject: Subject) -> None:
    async def ask_and_cancel() -> None:
        call = asyncio.create_task(subject.engine.chat(question("Count to 1000", max_tokens=1500)))
        while not subject.engine.running:  # noqa: ASYNC110 - there is no event to wait for
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
def test_a_stream_is_the_answer_in_pieces(subject: Subject, parameters: dict[str, Any]) -> None:
    chunks = subject.stream(**parameters)
    assembly = StreamAssembler()
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        assembly.add(chunk)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]
    assert all(chunk["choices"] for chunk in chunks[:-1])
    answer = subject.chat(**parameters).body
    assert essence(assembly.body()) == essence(answer)


def essence(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from call to call, and without nulls."""
    completion = ChatCompletion.model_validate(body)
    return completion.model_dump(exclude={"id", "created"}, exclude_none=True)


def test_a_stream_of_what_cannot_be_is_an_invalid_request(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="2048"):
        subject.stream("word " * 3000)


@pytest.mark.parametrize("cancel", [False, True])
def test_a_stream_that_nobody_wants_any_more_frees_its_place(
    subject: Subject, cancel: bool
) -> None:
    async def read_and_stop() -> None:
        chunks = subject.engine.stream(question("Count to 1000", max_tokens=1500))
        await anext(chunks)
        if cancel:
            rest = asyncio.create_task(drain(chunks))
            await asyncio.sleep(0)
            rest.cancel()
            with pytest.raises(asyncio.CancelledError):
                await rest
        else:
            await chunks.aclose()
        assert subject.engine.running == 0

    async def drain(chunks: Any) -> None:
        async for _ in chunks:
            pass

    subject.run(read_and_stop())


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_embeds_and_leaves_no_process_when_closed(name: str) -> None:
    async def embed_and_close() -> dict[str, Any]:
        engine = await engines.start(config(name, kind="embedding"))
        try:
            return (await engine.embed({"model": "tested", "input": ["one", "two"]})).body
        finally:
            await engine.close()

    resource_tracker.ensure_running()  # Python's own, which stays
    before = processes()
    response = CreateEmbeddingResponse.model_validate(asyncio.run(embed_and_close()))
    assert [data.index for data in response.data] == [0, 1]
    assert response.usage.prompt_tokens == response.usage.total_tokens > 0
    eventually(lambda: processes() <= before, 2)  # what was killed takes a moment to end


def processes() -> set[int]:
    """The living processes of this one's group: its children and theirs, whoever adopted them."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z" and int(group) == os.getpgrp():
            found.add(int(status.parent.name))
    return found
