"""Publishes LiteLLM's streams to the fleet's readers, and returns the answers that they form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from primarch_fleet.answers import form_of
from primarch_fleet.errors import ProviderUnavailable
from primarch_fleet.requests import CompletionRequest, ResponsesRequest
from workers.realtime.attempts import Attempts
from workers.realtime.router import RouterAnswer, hidden_params
from workers.stream_assembler import (
    ChatAssembler,
    IncompleteStream,
    ResponseAssembler,
    StreamAssembler,
)
from workers.stream_writer import Publish

#: What LiteLLM adds to the last event of a response.
_COST: Any = {"response": {"usage": {"cost"}}}


class StreamCollector(ABC):
    """Publishes and assembles the chunks of one stream, and records when its first token arrived.

    Args:
        wants_usage: Whether readers get the chunk with the usage.
    """

    assembler: ClassVar[type[StreamAssembler]]

    def __init__(self, publish: Publish, attempts: Attempts, *, wants_usage: bool = False) -> None:
        self._publish, self._attempts = publish, attempts
        self._wants_usage = wants_usage
        #: Chunks before the first token: a fallback can still replace them.
        self._unpublished: list[dict[str, Any]] = []
        self._provider_stream = attempts.provider_stream
        self._assembler = self.assembler()
        #: What LiteLLM records on the last chunk, its cost for example.
        self._hidden: dict[str, Any] = {}

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the call to the Router has in place of the request's own, or besides it."""
        return {}

    async def collect(self, stream: Any) -> RouterAnswer:
        """Read a stream to its end, and return the whole answer.

        Args:
            stream: What the Router's method returned.

        Raises:
            ProviderUnavailable: The stream ended before the answer was complete, or another
                deployment continues it.
            Exception: Whatever the stream raises; LiteLLM detects a stream that is cut short.
        """
        self._start_over()
        async for chunk in stream:
            if self._attempts.provider_stream is not self._provider_stream:
                if self._attempts.time_to_first_token is not None:
                    raise ProviderUnavailable("the provider failed in the middle of a stream")
                self._start_over()  # the deployment failed before its first token
            for body in self.openai_chunks(chunk):
                self._add(self._assembler.add(body))
        self._publish_all()
        return RouterAnswer(self._answer(), {**hidden_params(stream), **self._hidden})

    @abstractmethod
    def openai_chunks(self, chunk: Any) -> Iterator[dict[str, Any]]:
        """Convert a chunk or event of LiteLLM to what the provider sent, in OpenAI's form."""

    def _answer(self) -> dict[str, Any]:
        """The body of the answer that all chunks form. Raises ProviderUnavailable."""
        try:
            return self._assembler.body()
        except IncompleteStream as error:
            raise ProviderUnavailable(f"the provider failed: {error}") from None

    def _start_over(self) -> None:
        """Drop the chunks of a deployment that failed, and was replaced."""
        self._provider_stream = self._attempts.provider_stream
        self._assembler = self.assembler()
        self._unpublished.clear()

    def _add(self, body: dict[str, Any]) -> None:
        self._unpublished.append(body)
        if self._attempts.time_to_first_token is None and form_of(body).has_token(body):
            self._attempts.time_to_first_token = self._attempts.elapsed
        if self._attempts.time_to_first_token is not None:
            self._publish_all()

    def _publish_all(self) -> None:
        for body in self._unpublished:
            if form_of(body).is_for_readers(body, wants_usage=self._wants_usage):
                self._publish(body)
        self._unpublished.clear()


class ChatCollector(StreamCollector):
    """The stream of a chat completion."""

    assembler = ChatAssembler
    _model: str
    _ended: set[int]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stream options of the request, with the usage."""
        return {"stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}

    def openai_chunks(self, chunk: Any) -> Iterator[dict[str, Any]]:
        """Convert a chunk of LiteLLM to `chat.completion.chunk` bodies.

        What LiteLLM lost of the provider's chunks since the last one is added.
        """
        body: dict[str, Any] = chunk.model_dump(mode="json", exclude_none=True)
        self._hidden = hidden_params(chunk)
        said: str | None = self._hidden.get("provider_response_model")
        self._model = body["model"] = said or self._model or body["model"]
        choices: list[dict[str, Any]] = body["choices"]
        end = next((choice for choice in choices if choice.get("finish_reason")), None)
        shown = {} if end else {choice["index"]: choice["delta"] for choice in choices}
        lost = list(self._provider_stream.take_lost(shown))
        ends = list(self._ends(end))
        usage = body.pop("usage", None)
        if usage and self._provider_stream.is_read:
            usage = self._provider_stream.usage
        text = [] if end else choices
        for part in filter(None, (lost, text, ends)):
            yield {**body, "choices": part}
        if usage:
            yield {**body, "choices": [], "usage": usage}

    def _start_over(self) -> None:
        super()._start_over()
        self._model = ""
        self._ended = set()

    def _ends(self, end: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        """The ends of choices that are new, with the provider's own words.

        LiteLLM's `end` comes when nothing of the first choice is held back any more.
        """
        said = self._provider_stream.finish_reasons
        for index, reason in said.items() or [(0, end and end["finish_reason"])]:
            if reason is None or index in self._ended or (index == 0 and end is None):
                continue
            self._ended.add(index)
            ours = end["finish_reason"] if end and len(said) < 2 else reason
            own = {"provider_specific_fields": {"native_finish_reason": reason}}
            yield {"index": index, "delta": {}, "finish_reason": ours, **own}


class ResponseCollector(StreamCollector):
    """The stream of events of a response."""

    assembler = ResponseAssembler

    def openai_chunks(self, chunk: Any) -> Iterator[dict[str, Any]]:
        """Convert an event of LiteLLM to OpenAI's."""
        yield chunk.model_dump(mode="json", exclude_unset=True, exclude=_COST)


#: By the endpoint of the request.
COLLECTORS: dict[str, type[StreamCollector]] = {
    CompletionRequest.endpoint: ChatCollector,
    ResponsesRequest.endpoint: ResponseCollector,
}
