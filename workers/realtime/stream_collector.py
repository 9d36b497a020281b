"""Publishes LiteLLM's streams to the fleet's readers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from workers.realtime.attempts import Attempts
from workers.stream_writer import Publish, has_token

#: A field that LiteLLM adds to chunks for itself.
_LITELLM_FIELD = "provider_specific_fields"
_EXCLUDE: Any = {_LITELLM_FIELD: True, "choices": {"__all__": {"delta": {_LITELLM_FIELD: True}}}}


class StreamCollector:
    """Publishes and keeps the chunks of one stream, and records when its first token arrived."""

    def __init__(self, publish: Publish, attempts: Attempts) -> None:
        self._publish, self._attempts = publish, attempts
        #: Chunks before the first token: a fallback can still replace them.
        self._unpublished: list[dict[str, Any]] = []
        #: All chunks, as LiteLLM's objects.
        self.chunks: list[Any] = []

    async def collect(self, stream: AsyncIterator[Any]) -> None:
        """Read a stream to its end.

        Raises:
            Exception: Whatever the stream raises; LiteLLM detects a stream that is cut short.
        """
        async for chunk in stream:
            if self._attempts.time_to_first_token is None:
                self._discard_failed_deployment(chunk)
            self.chunks.append(chunk)
            body = openai_chunk(chunk)
            self._unpublished.append(body)
            if self._attempts.time_to_first_token is None and has_token(body):
                self._attempts.time_to_first_token = self._attempts.elapsed
            if self._attempts.time_to_first_token is not None:
                self._publish_all()
        self._publish_all()

    def _discard_failed_deployment(self, chunk: Any) -> None:
        """Drop the chunks of a deployment that failed before its first token and was replaced."""
        if self.chunks and chunk.id != self.chunks[-1].id:
            self.chunks.clear()
            self._unpublished.clear()

    def _publish_all(self) -> None:
        for body in self._unpublished:
            if body["choices"]:  # not the usage chunk: OpenAI sends it only on request
                self._publish(body)
        self._unpublished.clear()


def openai_chunk(chunk: Any) -> dict[str, Any]:
    """Convert a chunk of LiteLLM to the form that OpenAI sends."""
    body: dict[str, Any] = chunk.model_dump(mode="json", exclude_none=True, exclude=_EXCLUDE)
    for choice in body["choices"]:
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
    return body
