"""Finds answers with status 200 whose generation failed, before LiteLLM calls them complete.

LiteLLM maps finish reasons that it does not know, and those of failures, to "stop". It keeps the
provider's own in whole answers, and loses it in streams. Here its table is replaced by one whose
values remember the key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from litellm.exceptions import InternalServerError
from litellm.litellm_core_utils import core_helpers

from tasks.failed_answers import (
    failed_generation,
    fault_in_answer,
    fault_of_error,
    is_failed_finish,
)
from tasks.provider_errors import Fault
from workers.realtime.errors import mark

#: How long the usage of a failed stream is waited for.
MAX_USAGE_SECONDS = 1.0


class MappedReason(str):
    """OpenAI's finish reason for a provider's own, which it remembers."""

    __slots__ = ("native",)

    native: str


class NativeReasons(dict[str, str]):
    """LiteLLM's table of finish reasons; failures and unknown reasons become a MappedReason."""

    def get(self, native: str, default: Any = None) -> Any:
        """Return what LiteLLM's table has, or "stop"."""
        if isinstance(native, MappedReason):  # LiteLLM maps the reasons of some streams twice
            return native
        mapped = super().get(native, "stop")
        if not is_failed_finish(native):
            return mapped
        reason = MappedReason(mapped)
        reason.native = native
        return reason


def keep_native_reasons() -> None:
    """Replace LiteLLM's table in this process; calling this again changes nothing."""
    helpers: Any = core_helpers  # its table is final
    if not isinstance(helpers._FINISH_REASON_MAP, NativeReasons):
        helpers._FINISH_REASON_MAP = NativeReasons(helpers._FINISH_REASON_MAP)


def failure_of(answer: Any) -> Fault | None:
    """Return why the generation of an answer or of a chunk failed; None if it did not.

    Args:
        answer: An object of LiteLLM or of the openai SDK.
    """
    choices = getattr(answer, "choices", None)
    output = {"chat.completion": "choices", "list": "data"}.get(getattr(answer, "object", ""))
    if output and not getattr(answer, output, None):
        return fault_in_answer({})
    for choice in choices or ():
        reason = choice.finish_reason
        if reason is None:
            continue
        own = getattr(choice, "provider_specific_fields", None) or {}
        native = getattr(reason, "native", None) or own.get("native_finish_reason") or reason
        other = getattr(choice, "native_finish_reason", None)
        error = getattr(choice, "error", None)
        if is_failed_finish(native) or other is not None or error:
            parts = {"finish_reason": native, "native_finish_reason": other, "error": error}
            fault = fault_in_answer({"choices": [parts]})
            if fault is not None:
                return fault
    if getattr(answer, "object", None) == "response" and answer.status in ("failed", "cancelled"):
        return fault_in_answer(answer.model_dump())
    return None


def error_of(fault: Fault, model: str, provider: str) -> Exception:
    """Return LiteLLM's error for a failed generation: the Router tries another deployment."""
    return mark(InternalServerError(fault.message, llm_provider=provider, model=model), fault)


def has_output(chunk: Any) -> bool:
    """Return whether a chunk may have a part of an answer: all but a role, or nothing, may."""
    choices = getattr(chunk, "choices", None)
    return choices is None or any(
        any(value for name, value in choice.delta.model_dump().items() if name != "role")
        for choice in choices
    )


class CheckedChunks:
    """The chunks of a provider, as LiteLLM's stream reads them, up to a failed generation.

    Args:
        chunks: What LiteLLM would read.
        model: The provider's name of the model, for the error.
        provider: LiteLLM's name of the provider, for the error.
        on_failure: Called when the generation has failed, at the end of the stream.
    """

    def __init__(
        self, chunks: Any, model: str, provider: str, on_failure: Callable[[], None]
    ) -> None:
        self._on_failure = on_failure
        self._chunks = chunks
        self._iterator: AsyncIterator[Any] = aiter(chunks)
        self._model, self._provider = model, provider
        self._read: deque[Any] = deque()
        self._end: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)

    def __aiter__(self) -> CheckedChunks:
        return self

    async def __anext__(self) -> Any:
        if self._read:
            return self._read.popleft()
        if self._end is not None:
            raise self._end
        return await self._next()

    async def read_first_output(self) -> None:
        """Read ahead to the first output; `__anext__` returns, or raises, what was read.

        Raises:
            litellm.InternalServerError: The generation failed, or the stream ended, before that.
        """
        try:
            while not (self._read and has_output(self._read[-1])):
                self._read.append(await self._next())
        except InternalServerError:
            raise
        except StopAsyncIteration as end:
            if not any(choice.finish_reason for chunk in self._read for choice in chunk.choices):
                fault = failed_generation("the stream has no answer")
                raise error_of(fault, self._model, self._provider) from None
            self._end = end
        except Exception as error:  # the provider's, or the end: LiteLLM's stream handles both
            self._end = error

    async def _next(self) -> Any:
        try:
            chunk = await anext(self._iterator)
        except Exception as error:
            # The SDK raises an error in the place of a chunk.
            if said := getattr(error, "body", None):
                raise error_of(fault_of_error(said), self._model, self._provider) from error
            raise
        fault = failure_of(chunk)
        if fault is not None:
            await self._read_usage()
            raise error_of(fault, self._model, self._provider)
        return chunk

    async def _read_usage(self) -> None:
        """Read to the end of a failed stream: its usage comes last."""
        with suppress(Exception):  # the failure is what counts
            async with asyncio.timeout(MAX_USAGE_SECONDS):
                async for _ in self._iterator:
                    pass
        self._on_failure()
