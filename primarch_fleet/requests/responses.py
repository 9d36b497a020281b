"""Responses: OpenAI's newer API for text, reasoning and tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from primarch_fleet.contract import Lane
from primarch_fleet.requests.answer_schema import text_format_of
from primarch_fleet.requests.base import Count, JsonMapping, Request, prefix_hash
from primarch_fleet.requests.chat import RESPONSES_ENDPOINT

#: Fields that name something which a provider stores in one account. Only the realtime lane finds
#: the account again: LiteLLM puts the deployment into the id of each response.
STORED_STATE = ("previous_response_id", "conversation", "prompt")
#: The details of a usage, which servers other than OpenAI leave out. OpenAI's library needs them:
#: https://github.com/openai/openai-python/blob/main/src/openai/types/responses/response_usage.py
USAGE_DETAILS = {
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


class ResponsesRequest(Request):
    """A response, with the parameters of OpenAI's Responses API.

    `ResponsesRequest(model="gpt-5-pro", input="Why is the sky blue?")`

    Chat models answer it too: LiteLLM or the engine translates.
    """

    verb, endpoint = "respond", RESPONSES_ENDPOINT
    router_method, kinds = "aresponses", ("responses", "chat")

    #: A text, or messages and other items. Only a request with one of STORED_STATE may omit it.
    input: Annotated[str | Sequence[JsonMapping] | None, Field(repr=False)] = None
    background: bool | None = None
    context_management: Sequence[JsonMapping] | None = None
    #: The id of a conversation that the account has stored. Realtime lane.
    conversation: str | JsonMapping | None = None
    include: Sequence[str] | None = None
    instructions: Annotated[str | None, Field(repr=False)] = None
    #: The limit of the answer, reasoning included.
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    moderation: JsonMapping | None = None
    parallel_tool_calls: bool | None = None
    #: The `id` of an earlier response, which its deployment has stored and continues. Realtime
    #: lane.
    previous_response_id: str | None = None
    #: A template that the account has stored. Realtime lane.
    prompt: JsonMapping | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonMapping | None = None
    prompt_cache_retention: str | None = None
    #: OpenAI's own `metadata`, which is stored with the answer there.
    provider_metadata: JsonMapping | None = None
    reasoning: JsonMapping | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    #: Stream the answer, so that `Fleet.stream` can read its events by the ticket. The whole answer
    #: is still the result, and the receipt contains the time to first token.
    stream: bool | None = None
    stream_options: JsonMapping | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    text: Annotated[JsonMapping | None, Field(repr=False)] = None
    #: A pydantic class or dataclass, which is sent as its JSON schema in `text.format`, as the
    #: openai SDK does; then `Completion.parsed` is an instance of it. The class itself stays here.
    text_format: Annotated[type[Any] | None, Field(exclude=True)] = None
    tool_choice: str | JsonMapping | None = None
    tools: Sequence[JsonMapping] | None = None
    top_logprobs: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    truncation: str | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _send_schema(cls, data: dict[str, Any]) -> dict[str, Any]:
        answer_type, text = data.get("text_format"), data.get("text") or {}
        if answer_type is None or not isinstance(text, Mapping):
            return data
        if "format" in text:
            raise ValueError("text_format: text.format is another one; leave one of them out")
        try:
            return data | {"text": {**text, "format": text_format_of(answer_type)}}
        except ValueError as error:
            raise ValueError(f"text_format: {error}") from None

    @field_validator("tools", mode="before")
    @classmethod
    def _are_flat(cls, tools: object) -> object:
        """Accept functions in a chat's form, as `openai.pydantic_function_tool` returns them."""
        return [_flat(tool) for tool in tools] if isinstance(tools, list | tuple) else tools

    @field_validator("text", mode="before")
    @classmethod
    def _is_no_class(cls, value: object) -> object:
        if isinstance(value, type):
            raise ValueError("a class is no JSON: pass it as text_format")
        return value

    @model_validator(mode="after")
    def _needs_input(self) -> Self:
        if not self.input and (self.input is not None or not any(map(self._has, STORED_STATE))):
            raise ValueError(
                'input: pass a text, or a list such as [{"role": "user", "content": "Hello"}]; '
                f"only a request with {', '.join(STORED_STATE[:-1])} or {STORED_STATE[-1]} may "
                "omit it"
            )
        return self

    @model_validator(mode="after")
    def _check_background(self) -> Self:
        if self.background:
            raise ValueError(
                "background: every request runs in the background; submit() returns its ticket"
            )
        return self

    @model_validator(mode="after")
    def _max_cost_needs_a_token_limit(self) -> Self:
        if self.cost_cap is not None and self.max_output_tokens is None:
            raise ValueError("max_cost: set max_output_tokens too, or the cost has no limit")
        return self

    def unsupported(self) -> dict[Lane, str]:
        """Return the lanes that do not support a field of the request, each with the reason."""
        lanes = super().unsupported()
        if self.store:
            lanes["local"] = "store: the local lane stores no responses"
        for tool in self.tools or ():
            if tool.get("type") != "function":
                lanes["local"] = f"tools: the local lane runs functions only, no {tool.get('type')}"
        stored = [
            *filter(self._has, STORED_STATE),
            *(["item_reference"] if self.references() else []),
        ]
        for name in stored:
            why = f"{name}: it is stored in one account, which only the realtime lane finds again"
            lanes |= {"local": why, "batch": why}
        return lanes

    def references(self) -> list[Mapping[str, Any]]:
        """Return the items of the input that name an item which a provider stores."""
        items = () if isinstance(self.input, str) else self.input or ()
        return [item for item in items if _is_reference(item)]

    @classmethod
    def normalized(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Return a response's body with every count that OpenAI's usage has; a missing one is 0."""
        usage = body.get("usage")
        if not isinstance(usage, dict):
            return body
        details = {
            name: {**counts, **_without_nulls(usage.get(name) or {})}
            for name, counts in USAGE_DETAILS.items()
        }
        return {**body, "usage": {**usage, **details}}

    def output_token_limit(self) -> int | None:
        """Return `max_output_tokens`."""
        return self.max_output_tokens

    def prefixes(self, *, shared: bool = False) -> list[str]:
        """Return the prefix of the conversation, and of its instructions if there are any.

        The conversation's prefix ends with its first user message, so it is the same at every turn.
        Tools are part of both.

        Args:
            shared: Whether tenants share an engine's prefix cache; else no two tenants have a hash
                in common.
        """
        given = self.input or ()
        items = [given] if isinstance(given, str) else [dict(item) for item in given]
        before = sum(1 for _ in takewhile(_is_not_of_user, items))
        common = ["" if shared else self.tenant_id, list(self.tools or ()), self.instructions]
        heads: list[list[Any]] = [items[: before + 1], *([[]] if self.instructions else [])]
        return [prefix_hash([*common, head]) for head in heads]

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


def _flat(tool: Any) -> Any:
    """A function in the form of a response; any other tool as it is. A chat's is not strict."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        return tool
    return {"type": "function", **function, "strict": function.get("strict") or False}


def _without_nulls(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: count for name, count in counts.items() if count is not None}


def _is_reference(item: Mapping[str, Any]) -> bool:
    # OpenAI's API takes an id alone for a reference; a message may leave out its type too.
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item)


def _is_not_of_user(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") != "user"
