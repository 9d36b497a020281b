"""What every engine promises, asked of the simulated one and, where there is one, of vLLM.

FLEET_TEST_VLLM_MODEL names the folder of a chat model; vLLM starts twice, which takes minutes.
"""

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
from openai.types.chat import ChatCompletion

from config.fleet import Engine as EngineConfig
from primarch_fleet.errors import ConfigError, InvalidRequest
from tests.integration.conftest import eventually
from workers.local import engines
from workers.local.engines.base import Answer

VLLM_MODEL = os.environ.get("FLEET_TEST_VLLM_MODEL", "")
CONCURRENT = 16
ENGINES = [
    "simulated",
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.skipif(not VLLM_MODEL, reason="FLEET_TEST_VLLM_MODEL names no model"),
            pytest.mark.filterwarnings("default"),  # vLLM's own
            pytest.mark.timeout(600),
        ],
    ),
]


class Subject:
    """An engine on a loop of its own beside the main thread, as in a worker."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.engine: Any = self.run(engines.start(config(name)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def chat(self, content: str = "What is 2+2?", **parameters: Any) -> Answer:
        answer: Answer = self.run(self.engine.chat(question(content, **parameters)))
        return answer

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


def config(engine: str, **changes: Any) -> EngineConfig:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read only where there is no GPU
    settings = {
        "model": "tested",
        "engine": engine,
        "path": VLLM_MODEL,
        "price": {"input": "0"},
        "max_num_seqs": 2 * CONCURRENT,
        "max_model_len": 2048,
        "dtype": "float32",
        "enforce_eager": True,
    }
    return EngineConfig.model_validate(settings | changes)


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


@pytest.mark.parametrize("name", ENGINES[1:])
@pytest.mark.parametrize("change", [{"path": "/nowhere"}, {"dtype": "float13"}])
def test_what_vllm_refuses_is_a_configuration_error(name: str, change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tested: vLLM refuses"):
        asyncio.run(engines.start(config(name, **change)))
