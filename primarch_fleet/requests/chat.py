"""Chat completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    model_validator,
)

from primarch_fleet.requests.base import Count, JsonObject, Request

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def _check_message(message: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if message.get("role") not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str | list | None):
        raise ValueError("content must be text or a list of parts")
    return message


#: One message of a chat. Every key that OpenAI supports is allowed.
ChatMessage = Annotated[Mapping[str, JsonValue], AfterValidator(_check_message)]


class CompletionRequest(Request):
    """A chat completion, with the parameters of OpenAI's API.

    `CompletionRequest(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])`
    """

    verb, kind, endpoint = "complete", "chat", "/v1/chat/completions"

    messages: Annotated[Sequence[ChatMessage], Field(min_length=1, repr=False)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonObject | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    #: Stream the answer, so that `Fleet.stream` can read it by its ticket. The whole answer is
    #: still the result, and the receipt contains the time to first token.
    stream: bool | None = None

    @model_validator(mode="after")
    def _batch_cannot_stream(self) -> Self:
        if self.stream and self.lane == "batch":
            raise ValueError("stream: a batch cannot stream; leave it out or choose another lane")
        return self

    @model_validator(mode="after")
    def _max_cost_needs_a_token_limit(self) -> Self:
        if self.max_cost is not None and self.max_output_tokens() is None:
            raise ValueError("max_cost: set max_completion_tokens too, or the cost has no limit")
        return self

    def max_output_tokens(self) -> int | None:
        """Return the limit of one choice times `n`; None without a limit."""
        limit = self.max_completion_tokens or self.max_tokens
        return None if limit is None else limit * (self.n or 1)

    def prefixes(self) -> list[str]:
        """Return the prefix of the conversation, and of the system prompt if there is one.

        The conversation's prefix ends with its first user message, so it is the same at every turn.
        The system prompt consists of the leading system and developer messages. Tools are part of
        both.
        """
        roles = [message["role"] for message in self.messages]
        opening = roles.index("user") + 1 if "user" in roles else len(roles)
        system = sum(1 for _ in takewhile(("system", "developer").__contains__, roles))
        return [self._prefix(length) for length in dict.fromkeys((opening, system)) if length]

    def _prefix(self, length: int) -> str:
        head = [self.tools or [], [dict(message) for message in self.messages[:length]]]
        text = json.dumps(head, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
