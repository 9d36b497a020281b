"""Publishes LiteLLM's streams to the fleet's readers, and returns the answers that they form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from primarch_fleet.answers import form_of
from primarch_fleet.errors import ProviderUnavailable
from primarch_fleet.requests import CompletionRequest, ResponsesRequest
from workers.realtime.attempts import Attempts
from workers.realtime.router import RouterAnswer, assemble_answer, hidden_params
from workers.stream_assembler import ResponseAssembler
from workers.stream_writer import Publish

#: A field that LiteLLM adds to chunks for itself.
_LITELLM_FIELD = "provider_specific_fields"
_EXCLUDE: Any = {_LITELLM_FIELD: True, "choices": {"__all__": {"delta": {_LITELLM_FIELD: True}}}}

#: What LiteLLM adds to the last event of a response.
_COST: Any = {"response": {"usage": {"cost"}}}


class StreamCollector(ABC):
    """Publishes and keeps the chunks of one stream, and records when its first token arrived.

    Args:
        wants_usage: Whether readers get the chunk with the usage.
    """

    def __init__(self, publish: Publish, attempts: Attempts, *, wants_usage: bool = False) -> None:
        self._publish, self._attempts = publish, attempts
        self._wants_usage = wants_usage
        #: Chunks before the first token: a fallback can still replace them.
        self._unpublished: list[dict[str, Any]] = []
        #: All chunks, as LiteLLM's objects.
        self.chunks: list[Any] = []

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the call to the Router has in place of the request's own, or besides it."""
        return {}

    async def collect(self, stream: Any, body: Mapping[str, Any]) -> RouterAnswer:
        """Read a stream to its end, and return the whole answer.

        Args:
            stream: What the Router's method returned.
            body: The body of the request.

        Raises:
            ProviderUnavailable: The deployment failed after its first token, and LiteLLM continues
                the answer with another one.
            Exception: Whatever the stream raises; LiteLLM detects a stream that is cut short.
        """
        async for chunk in stream:
            if self._attempts.time_to_first_token is None:
                self._discard_failed_deployment(chunk)
                deployment_id = hidden_params(stream)["model_id"]
            elif hidden_params(stream)["model_id"] != deployment_id:
                raise ProviderUnavailable("the provider failed in the middle of a stream")
            self.chunks.append(chunk)
            self._add(self.openai_chunk(chunk))
        self._publish_all()
        return self.answer(stream, body)

    @abstractmethod
    def openai_chunk(self, chunk: Any) -> dict[str, Any]:
        """Convert a chunk of LiteLLM to the form that OpenAI sends."""

    @abstractmethod
    def answer(self, stream: Any, body: Mapping[str, Any]) -> RouterAnswer:
        """Return the answer that all chunks form."""

    @abstractmethod
    def starts_over(self, chunk: Any) -> bool:
        """Return whether a chunk is the first of another deployment, after the first one failed."""

    def _add(self, body: dict[str, Any]) -> None:
        self._unpublished.append(body)
        if self._attempts.time_to_first_token is None and form_of(body).has_token(body):
            self._attempts.time_to_first_token = self._attempts.elapsed
        if self._attempts.time_to_first_token is not None:
            self._publish_all()

    def _discard_failed_deployment(self, chunk: Any) -> None:
        """Drop the chunks of a deployment that failed before its first token and was replaced."""
        if self.chunks and self.starts_over(chunk):
            self.chunks.clear()
            self._unpublished.clear()

    def _publish_all(self) -> None:
        for body in self._unpublished:
            if form_of(body).is_for_readers(body, wants_usage=self._wants_usage):
                self._publish(body)
        self._unpublished.clear()


class ChatCollector(StreamCollector):
    """The stream of a chat completion."""

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stream options of the request, with the usage."""
        return {"stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}

    def openai_chunk(self, chunk: Any) -> dict[str, Any]:
        """Convert a chunk of LiteLLM to a `chat.completion.chunk`."""
        body: dict[str, Any] = chunk.model_dump(mode="json", exclude_none=True, exclude=_EXCLUDE)
        for choice in body["choices"]:
            choice.setdefault("logprobs", None)
            choice.setdefault("finish_reason", None)
        return body

    def answer(self, stream: Any, body: Mapping[str, Any]) -> RouterAnswer:
        """Assemble the answer with LiteLLM's own code."""
        return assemble_answer(stream, self.chunks, body["messages"])

    def starts_over(self, chunk: Any) -> bool:
        """Compare the ids: all chunks of an answer have the same one."""
        return bool(chunk.id != self.chunks[-1].id)


class ResponseCollector(StreamCollector):
    """The stream of events of a response."""

    def openai_chunk(self, chunk: Any) -> dict[str, Any]:
        """Convert an event of LiteLLM to OpenAI's, numbered from 0.

        LiteLLM's own events, for providers that do not stream responses, have no numbers.
        """
        if len(self.chunks) == 1:
            self._assembler = ResponseAssembler()
        event = chunk.model_dump(mode="json", exclude_unset=True, exclude=_COST)
        return self._assembler.add(event)

    def answer(self, stream: Any, body: Mapping[str, Any]) -> RouterAnswer:
        """Return the response of the last event; LiteLLM detects a stream without it."""
        return RouterAnswer(self._assembler.body(), hidden_params(stream))

    def starts_over(self, chunk: Any) -> bool:
        """Compare the types: each stream starts with the same one."""
        return bool(chunk.type == FIRST_EVENT)


FIRST_EVENT = "response.created"
#: By the endpoint of the request.
COLLECTORS: dict[str, type[StreamCollector]] = {
    CompletionRequest.endpoint: ChatCollector,
    ResponsesRequest.endpoint: ResponseCollector,
}
