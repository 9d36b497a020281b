"""What the calls of one run have used: also those without an answer, which providers bill too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import Any

from primarch_fleet.contract import FailedAttempt
from primarch_fleet.errors import ProviderUnavailable
from primarch_fleet.prices import Rates, cost_nanousd
from primarch_fleet.prompt_size import CHARACTERS_PER_TOKEN, MediaTokens
from primarch_fleet.requests import Request
from primarch_fleet.usage import OUTPUT_KINDS, Usage
from tasks.answer_usage import prompt_usage

#: Chunks of a stream have about one token each, unless they have more text than this many tokens.
MAX_TOKENS_PER_CHUNK = 2


@dataclass
class ProviderCall:
    """One call to a provider or an engine. While it runs, it counts as cut."""

    #: What was called, and its prices.
    deployment: str
    model: str
    rates: Rates
    media: MediaTokens
    #: The provider that reports show.
    provider: str
    #: The provider as traces name it: `gen_ai.provider.name`.
    system: str = ""
    #: Whether LiteLLM's figure of the cost counts in place of the prices.
    billed_by_litellm: bool = False
    #: The fleet's code of the error with which it ended.
    error: str = ProviderUnavailable.code
    #: True if it has an answer, whose cost is in the receipt.
    answered: bool = False
    #: True if the provider refused it before it generated anything: it costs nothing.
    refused: bool = False
    #: What the provider reports for an answer whose generation failed; None if it reports nothing.
    reported: Usage | None = None
    #: Chunks of a stream that arrived with a part of the answer, and their characters.
    chunks: int = 0
    characters: int = 0
    #: When it started and ended, in nanoseconds since the epoch by the host's clock; None: it runs.
    started_ns: int = field(default_factory=time.time_ns)
    ended_ns: int | None = None

    def add_chunk(self, text: str) -> None:
        """Count a chunk with a part of the answer."""
        self.chunks += 1
        self.characters += len(text)

    def fail(self, error: str, *, refused: bool) -> None:
        """Record how the call ended without an answer; a stream that had begun was not refused."""
        self.error, self.refused = error, refused and not self.chunks
        self.ended_ns = time.time_ns()

    @property
    def output_tokens(self) -> int:
        """The tokens of the chunks that arrived, by estimate."""
        by_text = self.characters // CHARACTERS_PER_TOKEN
        return by_text if by_text > MAX_TOKENS_PER_CHUNK * self.chunks else self.chunks


@dataclass
class UsageMeter:
    """The calls that were made for one run of a task, in order."""

    calls: list[ProviderCall] = field(default_factory=list)
    #: The tokens of the answer, once there is one.
    usage: Usage | None = None

    @property
    def provider(self) -> str:
        """The provider of the last call; "" if there was none."""
        return self.calls[-1].provider if self.calls else ""

    @classmethod
    def current(cls) -> UsageMeter:
        """Return the meter of the current run; outside a run, an unused meter."""
        return _meter.get() or cls()

    def activate(self) -> Token[UsageMeter | None]:
        """Make this the meter of the current asyncio task and its children."""
        return _meter.set(self)

    @staticmethod
    def deactivate(token: Token[UsageMeter | None]) -> None:
        """Undo `activate`."""
        _meter.reset(token)

    def start(self, call: ProviderCall) -> ProviderCall:
        """Count a call. If the call before it still runs, it was cut: a stream that is replaced."""
        self.calls.append(call)
        return call

    def add_chunk(self, text: str) -> None:
        """Count a chunk of a stream with a part of the answer, for the last call."""
        if self.calls:
            self.calls[-1].add_chunk(text)

    def answer(self, usage: Usage) -> None:
        """Record that the last call has an answer."""
        self.usage = usage
        if self.calls:
            self.calls[-1].answered = True
            self.calls[-1].ended_ns = time.time_ns()

    def fail(self, error: str, reported: Usage | None) -> None:
        """Record that the generation of the last call's answer failed.

        Args:
            reported: What the provider reports for it, if anything.
        """
        if self.calls:
            self.calls[-1].error, self.calls[-1].reported = error, reported

    def failed_attempts(self, request: Request) -> list[FailedAttempt]:
        """Return the calls without an answer, with what they cost.

        A call that was refused costs nothing, and an answer whose generation failed what its
        provider reports. Another one costs by estimate, at least its prompt, because the
        provider may have read it: as many tokens as the answer's usage says, or as expected. A
        stream costs the tokens that arrived too. A call that was not streamed costs as much output
        as the answer that another call gave; without any, none is known.
        """
        return [attempt for _, attempt in self.unanswered(request)]

    def unanswered(self, request: Request) -> Iterator[tuple[ProviderCall, FailedAttempt]]:
        """Yield the calls of `failed_attempts` too."""
        for call in self.calls:
            if not call.answered:
                yield call, _failed_attempt(call, request, self.usage)


_meter: ContextVar[UsageMeter | None] = ContextVar("meter", default=None)


def _failed_attempt(call: ProviderCall, request: Request, usage: Usage | None) -> FailedAttempt:
    reported = call.reported if call.reported and call.reported.input_tokens else None
    if call.refused and reported is None:
        return FailedAttempt(deployment=call.deployment, model=call.model, error=call.error)
    used = reported or _estimated_usage(call, request, usage)
    return FailedAttempt(
        deployment=call.deployment,
        model=call.model,
        error=call.error,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cost_nanousd=cost_nanousd(call.rates, used, tier=getattr(request, "service_tier", None)),
        estimated=reported is None,
    )


def _estimated_usage(call: ProviderCall, request: Request, answered: Usage | None) -> Usage:
    if answered is not None and not request.streams:
        return answered
    if answered is not None:
        nothing: dict[str, Any] = dict.fromkeys((*OUTPUT_KINDS, "web_searches", "maps_searches"), 0)
        prompt = replace(answered, **nothing)
    else:
        prompt = prompt_usage(request.prompt_size().expected(call.media))
    return replace(prompt, text_output_tokens=call.output_tokens)
