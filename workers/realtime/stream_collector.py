"""LiteLLM's streams, as the fleet publishes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from workers.realtime.attempts import Attempts
from workers.stream_writer import Publish, has_token

#: What LiteLLM adds to a chunk for itself.
_FIELD = "provider_specific_fields"
_PRIVATE: Any = {_FIELD: True, "choices": {"__all__": {"delta": {_FIELD: True}}}}


class Collector:
    """Publishes the chunks of one stream and keeps them; notes when the first token came."""

    def __init__(self, publish: Publish, attempts: Attempts) -> None:
        self._publish, self._attempts = publish, attempts
        self._held: list[dict[str, Any]] = []
        #: LiteLLM's chunks.
        self.chunks: list[Any] = []

    async def collect(self, stream: AsyncIterator[Any]) -> None:
        """Take all of a stream. Raises what it raises: LiteLLM notices one that is cut short."""
        async for chunk in stream:
            if self._attempts.first_token is None:
                self._start_over(chunk)
            self.chunks.append(chunk)
            self._held.append(openai_chunk(chunk))
            if self._attempts.first_token is None and has_token(self._held[-1]):
                self._attempts.first_token = self._attempts.elapsed
            if self._attempts.first_token is not None:
                self._let_go()
        self._let_go()

    def _start_over(self, chunk: Any) -> None:
        """Forget a deployment that failed before it had said anything: a fallback goes on."""
        if self.chunks and chunk.id != self.chunks[-1].id:
            self.chunks.clear()
            self._held.clear()

    def _let_go(self) -> None:
        for body in self._held:
            if body["choices"]:  # not the usage: OpenAI sends it only to those who ask for it
                self._publish(body)
        self._held.clear()


def openai_chunk(chunk: Any) -> dict[str, Any]:
    """LiteLLM's chunk as OpenAI would have sent it."""
    body: dict[str, Any] = chunk.model_dump(mode="json", exclude_none=True, exclude=_PRIVATE)
    for choice in body["choices"]:
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
    return body
