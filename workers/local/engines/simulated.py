"""An engine for machines without a GPU: deterministic, shaped like a real one, honest about it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from typing import Any

from config.fleet import Engine as EngineConfig
from primarch_fleet.errors import InvalidRequest
from workers.local.engines.base import Answer

#: Seconds that one simulated token takes, however many sequences run: what batching is for.
TIME_PER_TOKEN = 0.002
DIMENSIONS = 8


async def start(config: EngineConfig) -> SimulatedEngine:
    """Ready at once."""
    return SimulatedEngine(config)


class SimulatedEngine:
    """Answers with words derived from the question; runs `max_num_seqs` requests at a time."""

    simulated = True
    dead = False

    def __init__(self, config: EngineConfig) -> None:
        self._model = config.model
        self._max_model_len = config.max_model_len
        self._seats = asyncio.Semaphore(config.max_num_seqs)
        self.running = 0
        #: The most requests that were ever in it at the same time.
        self.most_running = 0

    async def chat(self, body: dict[str, Any]) -> Answer:
        prompt = [word for message in body["messages"] for word in _words(message)]
        words = f"Simulated answer {_digest(' '.join(prompt))[:8]}".split() + prompt[-5:]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        self._check_length(len(prompt), min(limit, len(words)))
        started = time.perf_counter()
        await self._generate(1)
        first_token = time.perf_counter() - started
        await self._generate(min(limit, len(words)) - 1)
        choices = [_choice(index, words, limit) for index in range(body.get("n") or 1)]
        written = sum(len(choice["message"]["content"].split()) for choice in choices)
        body = {
            "id": f"chatcmpl-{_digest(repr(body))[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": choices,
            "usage": _usage(len(prompt), written),
        }
        return Answer(body, first_token)

    async def embed(self, body: dict[str, Any]) -> Answer:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if not isinstance(inputs[0], str):
            raise InvalidRequest("input: the simulated engine has no tokens; send text")
        if body.get("encoding_format") == "base64":
            raise InvalidRequest("encoding_format: the simulated engine only knows float")
        await self._generate(1)
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text, body)}
            for index, text in enumerate(inputs)
        ]
        read = sum(len(text.split()) for text in inputs)
        usage = {"prompt_tokens": read, "total_tokens": read}
        return Answer({"object": "list", "model": self._model, "data": data, "usage": usage}, None)

    async def close(self) -> None:
        """Nothing is held."""

    def _check_length(self, read: int, written: int) -> None:
        if self._max_model_len is not None and read + written > self._max_model_len:
            raise InvalidRequest(
                f"messages: {read} tokens and {written} to write are more than the model's "
                f"{self._max_model_len}"
            )

    async def _generate(self, tokens: int) -> None:
        async with self._seats:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await asyncio.sleep(TIME_PER_TOKEN * tokens)
            finally:
                self.running -= 1


def _words(message: dict[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content)
    return content.split()


def _choice(index: int, words: list[str], limit: int) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": " ".join(words[:limit]), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop" if limit >= len(words) else "length",
    }


def _usage(read: int, written: int) -> dict[str, int]:
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _vector(text: str, body: dict[str, Any]) -> list[float]:
    """A unit vector that depends on nothing but the text."""
    size = body.get("dimensions") or DIMENSIONS
    raw = [int(_digest(f"{index}{text}")[:8], 16) - 2**31 for index in range(size)]
    length = math.hypot(*raw)
    return [number / length for number in raw]
