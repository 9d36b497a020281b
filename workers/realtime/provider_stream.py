"""Keeps what LiteLLM's streams leave out of the chunks that a provider sends.

LiteLLM's wrapper of a stream drops a chunk without text, tool calls or reasoning, so a streamed
refusal too; it reports one finish reason, of the first choice, and takes an unknown reason
for "stop"; it adds the totals of a usage up again, and counts tokens itself where there is none.
The code here reads the chunks on their way into the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Fields of a delta that LiteLLM keeps, or holds back until a later chunk.
_KEPT = frozenset(
    {
        *("role", "content", "tool_calls", "function_call"),
        *("reasoning", "reasoning_content", "thinking_blocks", "provider_specific_fields"),
    }
)


class ProviderStream:
    """What one call's provider has sent so far."""

    def __init__(self) -> None:
        #: Finish reasons in the provider's words, by the index of their choice.
        self.finish_reasons: dict[int, str] = {}
        #: Whether the chunks are read; if not, LiteLLM's stream is all that is known.
        self.is_read = False
        self._sent_usage: dict[str, Any] | None = None
        self._parsed_usage: Any = None
        self._pending: list[Any] = []

    @property
    def usage(self) -> dict[str, Any] | None:
        """The last usage that the provider has sent."""
        return self._sent_usage or _dumped(self._parsed_usage)

    def read(self, stream: Any) -> None:
        """Read the chunks that go into a stream of LiteLLM; other responses are left alone."""
        chunks: Any = getattr(stream, "completion_stream", None)
        if not hasattr(chunks, "__aiter__"):
            return
        self.is_read = True
        if hasattr(chunks, "chunk_parser"):  # it gets the provider's JSON
            chunks.chunk_parser = self._recorded(chunks.chunk_parser)
        stream.completion_stream = _Recorded(chunks, self._add)

    def take_lost(self, shown: Mapping[int, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield what LiteLLM lost of the chunks since the last call, as choices of a chunk.

        Args:
            shown: The deltas of LiteLLM's chunk by choice. It was made of the last chunk, and the
                others were dropped; if it is empty, the last one was dropped too.
        """
        pending, self._pending = self._pending, []
        for number, chunk in enumerate(pending, 1):
            kept = shown if number == len(pending) else {}
            for position, choice in enumerate(getattr(chunk, "choices", None) or ()):
                # LiteLLM looks at the first choice of a chunk to decide whether to drop it.
                known = () if position and not kept else _KEPT
                seen = kept.get(choice.index, ())
                names = {
                    name
                    for name, value in choice.delta
                    if value and name not in known and name not in seen
                }
                if names:
                    delta = choice.delta.model_dump(mode="json", include=names, exclude_none=True)
                    logprobs = None if kept else _dumped(getattr(choice, "logprobs", None))
                    yield {"index": choice.index, "delta": delta, "logprobs": logprobs}

    def _recorded(self, parse: Callable[..., Any]) -> Callable[..., Any]:
        """The parser of a provider's JSON, which also records what LiteLLM's chunk will not say."""

        def recorded(chunk: Any) -> Any:
            if isinstance(chunk, Mapping) and "choices" in chunk:  # OpenAI's form
                self._sent_usage = chunk.get("usage") or self._sent_usage
                for choice in chunk["choices"] or ():
                    self._add_reason(choice.get("index"), choice.get("finish_reason"))
            return parse(chunk=chunk)

        return recorded

    def _add(self, chunk: Any) -> None:
        self._pending.append(chunk)
        usage = chunk.get("usage") if isinstance(chunk, dict) else getattr(chunk, "usage", None)
        if usage is not None:
            self._parsed_usage = usage
        for choice in getattr(chunk, "choices", None) or ():
            self._add_reason(choice.index, choice.finish_reason)

    def _add_reason(self, index: int | None, reason: str | None) -> None:
        if reason:  # the first is the provider's own: LiteLLM's chunk comes after it
            self.finish_reasons.setdefault(index or 0, reason)


class _Recorded:
    """An asynchronous iterator that shows each item; all else is that of the iterable."""

    def __init__(self, items: Any, show: Callable[[Any], None]) -> None:
        self._items, self._show = items, show
        self._iterator: Any = None

    def __aiter__(self) -> _Recorded:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            self._iterator = aiter(self._items)
        item = await anext(self._iterator)
        self._show(item)
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)


def _dumped(value: Any) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    body: dict[str, Any] = value.model_dump(mode="json", exclude_none=True)
    return body
