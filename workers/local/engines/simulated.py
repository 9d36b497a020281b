"""A simulated engine for machines without a GPU; its answers are deterministic."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from config.engine import EngineConfig
from config.engine_parameters import ENGINE_PARAMETERS
from primarch_fleet.errors import ContextWindowExceeded, InvalidRequest
from primarch_fleet.requests import CompletionRequest, EmbeddingRequest, ResponsesRequest
from workers.local.engines import simulated_response
from workers.local.engines.base import Answer

#: Time per token of each sequence; as with real batching, more sequences do not slow it down.
SECONDS_PER_TOKEN = 0.002
DEFAULT_DIMENSIONS = 8
REASONING = ["Simulated", "reasoning"]
Method = TypeVar("Method", bound=Callable[..., Any])


async def start(config: EngineConfig) -> SimulatedEngine:
    """Return an engine that is ready at once."""
    return SimulatedEngine(config)


class SimulatedEngine:
    """Answers with words derived from the prompt; runs `max_num_seqs` requests at a time.

    With a `reasoning_parser`, it reasons first, in the field where vLLM has it.

    It accepts the parameters that vLLM has. Only `n`, the token limits and `dimensions` change its
    answers.

    Args:
        config: The engine's settings.
        sleep: Waits while a request is computed, for a number of seconds; tests replace it.
    """

    simulated = True
    dead = False

    def __init__(
        self, config: EngineConfig, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._max_model_len = config.max_model_len
        self._max_running = config.max_num_seqs
        self._reasoning = REASONING if config.reasoning_parser else []
        self._sleep = sleep
        self._running = 0
        #: A heap of (priority, arrival number, future that is resolved when a slot is free).
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        #: By endpoint.
        self._answers = {
            CompletionRequest.endpoint: self._chat,
            EmbeddingRequest.endpoint: self._embed,
            ResponsesRequest.endpoint: self._respond,
        }
        self._streams = {
            CompletionRequest.endpoint: self._stream_chat,
            ResponsesRequest.endpoint: self._stream_response,
        }

    @property
    def running(self) -> int:
        """Requests that have a slot now."""
        return self._running

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        """Answer a request with words or vectors that depend only on its body."""
        _check_parameters(endpoint, body)
        if "stream_options" in body:
            raise InvalidRequest("stream_options: only for streams")
        return await self._method(self._answers, endpoint)(body, priority)

    def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the words of `answer`, one in each chunk."""
        _check_parameters(endpoint, body)
        return self._method(self._streams, endpoint)(body, priority)

    async def _chat(self, body: dict[str, Any], priority: int) -> Answer:
        """Answer with words derived from the last message."""
        text = self._text(body)
        started = time.perf_counter()
        async with self._slot(priority):
            await self._sleep(SECONDS_PER_TOKEN)
            first_token = time.perf_counter() - started
            await self._sleep(SECONDS_PER_TOKEN * (len(text.words) - 1))
        choices = [_choice(index, text) for index in range(text.choices)]
        return Answer(text.head("chat.completion") | _body(choices, text.usage), first_token)

    async def _stream_chat(
        self, body: dict[str, Any], priority: int
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the words of `_chat`, one in each chunk."""
        text = self._text(body)
        head, all_choices = text.head("chat.completion.chunk"), range(text.choices)
        async with self._slot(priority):
            role = {"role": "assistant", "content": "", "refusal": None}
            for index in all_choices:
                yield head | _body([_delta(index, role)])
            for piece in text.pieces():
                await self._sleep(SECONDS_PER_TOKEN)
                for index in all_choices:
                    yield head | _body([_delta(index, piece)])
            for index in all_choices:
                yield head | _body([_delta(index, {}, text.finish_reason)])
        yield head | _body([], text.usage)

    async def _respond(self, body: dict[str, Any], priority: int) -> Answer:
        """Answer as `_chat` does, in the form of a response."""
        completion, first_token = await self._chat(simulated_response.as_chat(body), priority)
        return Answer(simulated_response.response(body, completion), first_token)

    async def _stream_response(
        self, body: dict[str, Any], priority: int
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the words of `_respond`, one in each event."""
        text = self._text(simulated_response.as_chat(body))
        completion = text.head("chat.completion") | _body([_choice(0, text)], text.usage)
        whole = simulated_response.response(body, completion)
        async with self._slot(priority):
            for event in simulated_response.opening(whole):
                yield event
            for index, item in enumerate(whole["output"]):
                for event in simulated_response.item_events(index, item):
                    if "delta" in event:
                        await self._sleep(SECONDS_PER_TOKEN)
                    yield event
        yield {"type": f"response.{whole['status']}", "response": whole}

    async def _embed(self, body: dict[str, Any], priority: int) -> Answer:
        """Return vectors derived from the inputs."""
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if not isinstance(inputs[0], str):
            raise InvalidRequest("input: the simulated engine has no tokenizer; send text")
        if body.get("encoding_format") == "base64":
            raise InvalidRequest("encoding_format: the simulated engine supports only float")
        async with self._slot(priority):
            await self._sleep(SECONDS_PER_TOKEN)
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text, body)}
            for index, text in enumerate(inputs)
        ]
        tokens = sum(len(text.split()) for text in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "model": body["model"], "data": data, "usage": usage}
        return Answer(body, None)

    async def close(self) -> None:
        """Do nothing: it holds no hardware."""

    @staticmethod
    def _method(methods: Mapping[str, Method], endpoint: str) -> Method:
        """Return the method of an endpoint. Raises InvalidRequest."""
        try:
            return methods[endpoint]
        except KeyError:
            raise InvalidRequest(f"model: the simulated engine has no {endpoint}") from None

    def _text(self, body: dict[str, Any]) -> _Text:
        """The answer to a chat request. Raises InvalidRequest."""
        prompt = [word for message in body["messages"] for word in _words(message)]
        answer = f"Simulated answer {_digest(' '.join(prompt))[:8]}".split() + prompt[-5:]
        words = [*self._reasoning, *answer]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        self._check_length(len(prompt), min(limit, len(words)))
        reason = "stop" if limit >= len(words) else "length"
        return _Text(body, len(prompt), words[:limit], reason, len(self._reasoning))

    def _check_length(self, input_tokens: int, output_tokens: int) -> None:
        if self._max_model_len is not None and input_tokens + output_tokens > self._max_model_len:
            raise ContextWindowExceeded(
                f"messages: {input_tokens} tokens plus {output_tokens} of output exceed the "
                f"model's {self._max_model_len}"
            )

    @asynccontextmanager
    async def _slot(self, priority: int) -> AsyncIterator[None]:
        """Hold one of the `max_num_seqs` slots; the lowest waiting priority gets the next one."""
        if self._running < self._max_running:
            self._running += 1
        else:
            await self._wait_for_slot(priority)
        try:
            yield
        finally:
            self._release_slot()

    async def _wait_for_slot(self, priority: int) -> None:
        slot_free = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), slot_free))
        try:
            await slot_free
        except asyncio.CancelledError:
            if not slot_free.cancelled():  # it got the slot and was then cancelled
                self._release_slot()
            raise

    def _release_slot(self) -> None:
        """Pass the slot on to the next waiting request, or free it."""
        while self._waiting:
            slot_free = heapq.heappop(self._waiting)[2]
            if not slot_free.done():
                return slot_free.set_result(None)
        self._running -= 1


def _check_parameters(endpoint: str, body: dict[str, Any]) -> None:
    supported = ENGINE_PARAMETERS.get(endpoint)
    if supported is not None and (unknown := sorted(body.keys() - supported)):
        raise InvalidRequest(f"{', '.join(unknown)}: the simulated engine does not support it")


def _words(message: dict[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content)
    return content.split()


class _Text(NamedTuple):
    """The text of an answer; every choice has the same words."""

    request: dict[str, Any]
    input_tokens: int
    words: list[str]
    finish_reason: str
    #: How many of the words are reasoning.
    reasoning_words: int

    def pieces(self) -> Iterator[dict[str, str]]:
        """Yield the words as deltas of a message."""
        start = self.reasoning_words
        for name, words in (("reasoning", self.words[:start]), ("content", self.words[start:])):
            for number, word in enumerate(words):
                yield {name: f" {word}" if number else word}

    @property
    def message(self) -> dict[str, Any]:
        reasoning, words = self.words[: self.reasoning_words], self.words[self.reasoning_words :]
        message = {"role": "assistant", "content": " ".join(words), "refusal": None}
        return message | ({"reasoning": " ".join(reasoning)} if reasoning else {})

    @property
    def choices(self) -> int:
        return self.request.get("n") or 1

    @property
    def usage(self) -> dict[str, int]:
        output_tokens = len(self.words) * self.choices
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.input_tokens + output_tokens,
        }

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{_digest(repr(self.request))[:24]}",
            "object": kind,
            "created": int(time.time()),
            "model": self.request["model"],
        }


def _body(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
    return {"choices": choices} | ({"usage": usage} if usage else {})


def _choice(index: int, text: _Text) -> dict[str, Any]:
    return {
        "index": index,
        "message": text.message,
        "logprobs": None,
        "finish_reason": text.finish_reason,
    }


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _vector(text: str, body: dict[str, Any]) -> list[float]:
    """A unit vector that depends only on the text."""
    size = body.get("dimensions") or DEFAULT_DIMENSIONS
    raw = [int(_digest(f"{index}{text}")[:8], 16) - 2**31 for index in range(size)]
    length = math.hypot(*raw)
    return [number / length for number in raw]
