"""An engine for machines without a GPU: deterministic, shaped like a real one, honest about it."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from config.engine import EngineConfig
from primarch_fleet.errors import InvalidRequest
from workers.local.engines.base import Answer

#: Seconds that one simulated token takes, however many sequences run: what batching is for.
TIME_PER_TOKEN = 0.002
DIMENSIONS = 8
#: The parameters that make no difference to a model which is none, and those that it honours.
KNOWN = {
    *("model", "messages", "input", "user", "seed"),
    *("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("max_tokens", "max_completion_tokens", "n", "dimensions", "encoding_format"),
}


async def start(config: EngineConfig) -> SimulatedEngine:
    """Ready at once."""
    return SimulatedEngine(config)


class SimulatedEngine:
    """Answers with words derived from the question; runs `max_num_seqs` requests at a time."""

    simulated = True
    dead = False

    def __init__(self, config: EngineConfig) -> None:
        self._max_model_len = config.max_model_len
        self._seats = config.max_num_seqs
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self.running = 0
        #: The most requests that were ever in it at the same time.
        self.most_running = 0

    async def chat(self, body: dict[str, Any], priority: int = 0) -> Answer:
        text = self._text(body)
        started = time.perf_counter()
        async with self._seat(priority):
            await asyncio.sleep(TIME_PER_TOKEN)
            first_token = time.perf_counter() - started
            await asyncio.sleep(TIME_PER_TOKEN * (len(text.words) - 1))
        choices = [_choice(index, text) for index in range(text.choices)]
        return Answer(text.head("chat.completion") | _body(choices, text.usage), first_token)

    async def stream(
        self, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        text = self._text(body)
        head, all_choices = text.head("chat.completion.chunk"), range(text.choices)
        async with self._seat(priority):
            role = {"role": "assistant", "content": "", "refusal": None}
            for index in all_choices:
                yield head | _body([_delta(index, role)])
            for number, word in enumerate(text.words):
                await asyncio.sleep(TIME_PER_TOKEN)
                for index in all_choices:
                    yield head | _body([_delta(index, {"content": f" {word}" if number else word})])
            for index in all_choices:
                yield head | _body([_delta(index, {}, text.finish_reason)])
        yield head | _body([], text.usage)

    async def embed(self, body: dict[str, Any], priority: int = 0) -> Answer:
        _check_parameters(body)
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if not isinstance(inputs[0], str):
            raise InvalidRequest("input: the simulated engine has no tokens; send text")
        if body.get("encoding_format") == "base64":
            raise InvalidRequest("encoding_format: the simulated engine only knows float")
        async with self._seat(priority):
            await asyncio.sleep(TIME_PER_TOKEN)
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text, body)}
            for index, text in enumerate(inputs)
        ]
        read = sum(len(text.split()) for text in inputs)
        usage = {"prompt_tokens": read, "total_tokens": read}
        body = {"object": "list", "model": body["model"], "data": data, "usage": usage}
        return Answer(body, None)

    async def close(self) -> None:
        """Nothing is held."""

    def _text(self, body: dict[str, Any]) -> _Text:
        """What it answers. Raises InvalidRequest."""
        _check_parameters(body)
        prompt = [word for message in body["messages"] for word in _words(message)]
        words = f"Simulated answer {_digest(' '.join(prompt))[:8]}".split() + prompt[-5:]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        self._check_length(len(prompt), min(limit, len(words)))
        return _Text(body, len(prompt), words[:limit], "stop" if limit >= len(words) else "length")

    def _check_length(self, read: int, written: int) -> None:
        if self._max_model_len is not None and read + written > self._max_model_len:
            raise InvalidRequest(
                f"messages: {read} tokens and {written} to write are more than the model's "
                f"{self._max_model_len}"
            )

    @asynccontextmanager
    async def _seat(self, priority: int) -> AsyncIterator[None]:
        """One of the engine's places; of those that wait the lowest priority gets the next."""
        if self.running < self._seats:
            self.running += 1
        else:
            await self._turn(priority)
        self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            self._leave()

    async def _turn(self, priority: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given a place while it was being cancelled
                self._leave()
            raise

    def _leave(self) -> None:
        """Hand the place to the next that still waits for one."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                return turn.set_result(None)
        self.running -= 1


def _check_parameters(body: dict[str, Any]) -> None:
    if unknown := sorted(set(body) - KNOWN):
        raise InvalidRequest(f"{', '.join(unknown)}: the simulated engine does not have it")


def _words(message: dict[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content)
    return content.split()


class _Text(NamedTuple):
    """An answer before it has a form; each choice has the same words."""

    request: dict[str, Any]
    read: int
    words: list[str]
    finish_reason: str

    @property
    def choices(self) -> int:
        return self.request.get("n") or 1

    @property
    def usage(self) -> dict[str, int]:
        written = len(self.words) * self.choices
        total = self.read + written
        return {
            "prompt_tokens": self.read,
            "completion_tokens": written,
            "total_tokens": total,
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
        "message": {"role": "assistant", "content": " ".join(text.words), "refusal": None},
        "logprobs": None,
        "finish_reason": text.finish_reason,
    }


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _vector(text: str, body: dict[str, Any]) -> list[float]:
    """A unit vector that depends on nothing but the text."""
    size = body.get("dimensions") or DIMENSIONS
    raw = [int(_digest(f"{index}{text}")[:8], 16) - 2**31 for index in range(size)]
    length = math.hypot(*raw)
    return [number / length for number in raw]
