"""Chat completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    JsonValue,
    field_validator,
    model_validator,
)

from primarch_fleet import chat_form
from primarch_fleet.contract import LANES, Lane, ModelKind
from primarch_fleet.requests.answer_schema import json_schema_of
from primarch_fleet.requests.base import Count, JsonMapping, JsonObject, Request, prefix_hash

#: Where models answer that have no chats.
RESPONSES_ENDPOINT = "/v1/responses"
#: Keys of `extra_body` that change the prompt that an engine computes.
PROMPT_PARAMETERS = (
    *("chat_template", "chat_template_kwargs", "documents", "add_special_tokens"),
    *("mm_processor_kwargs", "media_io_kwargs", "cache_salt"),
)


def _check_is_object(message: object) -> object:
    if isinstance(message, Mapping | BaseModel):
        return message
    raise ValueError('a message is an object, such as {"role": "user", "content": "Hello"}')


def _check_message(message: Mapping[str, object]) -> Mapping[str, object]:
    role = message.get("role")
    if not (isinstance(role, str) and role):
        raise ValueError("role must be a text, such as user or assistant")
    if not isinstance(message.get("content"), str | list | None):
        raise ValueError("content must be text or a list of parts")
    return message


#: One message of a chat. Every key that OpenAI supports is allowed.
ChatMessage = Annotated[
    Mapping[str, object],
    GetPydanticSchema(lambda _, handler: handler(Mapping[str, JsonValue])),
    AfterValidator(_check_message),
    BeforeValidator(_check_is_object),
]


#: OpenAI's object, or a pydantic class or dataclass, which becomes that object.
ResponseFormat = Annotated[
    Mapping[str, object] | type[Any],
    GetPydanticSchema(lambda _, handler: handler(JsonObject)),
    BeforeValidator(json_schema_of),
]


class CompletionRequest(Request):
    """A chat completion, with the parameters of OpenAI's API.

    `CompletionRequest(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])`
    """

    verb, endpoint = "complete", "/v1/chat/completions"
    router_method, kinds = "acompletion", ("chat", "responses")

    messages: Annotated[Sequence[ChatMessage], Field(min_length=1, repr=False)]
    audio: JsonMapping | None = None
    frequency_penalty: float | None = None
    function_call: str | JsonMapping | None = None
    functions: Sequence[JsonMapping] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    modalities: Sequence[str] | None = None
    moderation: JsonMapping | None = None
    n: Count | None = None
    parallel_tool_calls: bool | None = None
    prediction: Annotated[JsonMapping | None, Field(repr=False)] = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonMapping | None = None
    prompt_cache_retention: str | None = None
    #: OpenAI's own `metadata`, which is stored with the answer there.
    provider_metadata: JsonMapping | None = None
    reasoning_effort: str | JsonMapping | None = None
    #: A class is sent as its JSON schema, as the openai SDK does; then `Completion.parsed` is an
    #: instance of it.
    response_format: ResponseFormat | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    service_tier: str | None = None
    stop: str | Sequence[str] | None = None
    store: bool | None = None
    #: Stream the answer, so that `Fleet.stream` can read it by its ticket. The whole answer is
    #: still the result, and the receipt contains the time to first token.
    stream: bool | None = None
    #: Only for streams. With `include_usage`, readers of the stream get the chunk with the usage.
    stream_options: JsonMapping | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    tool_choice: str | JsonMapping | None = None
    tools: Sequence[JsonMapping] | None = None
    top_logprobs: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    user: str | None = None
    verbosity: str | None = None
    web_search_options: JsonMapping | None = None

    @field_validator("messages", mode="before")
    @classmethod
    def _is_list(cls, value: object) -> object:
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return value
        raise ValueError(
            'pass a list of messages, such as [{"role": "user", "content": "Hello"}], '
            f"not a value of type {type(value).__name__}"
        )

    @model_validator(mode="after")
    def _max_cost_needs_a_token_limit(self) -> Self:
        if self.cost_cap is not None and self.output_token_limit() is None:
            raise ValueError("max_cost: set max_completion_tokens too, or the cost has no limit")
        return self

    @property
    def wants_usage(self) -> bool:
        """True if `stream_options` asks for the chunk with the usage."""
        return bool((self.stream_options or {}).get("include_usage"))

    @classmethod
    def endpoint_at(cls, kind: ModelKind) -> str:
        """Return the endpoint of a chat, or of the response that LiteLLM makes of it."""
        return RESPONSES_ENDPOINT if kind == "responses" else cls.endpoint

    @classmethod
    def normalized(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Return a chat completion in the fleet's one form (`chat_form`)."""
        return chat_form.normalized(body)

    def unsupported(self) -> dict[Lane, str]:
        """Return the lanes that do not support a field of the request, each with the reason."""
        if self.stream_options and not self.stream:
            return dict.fromkeys(LANES, "stream_options: only for streams; set stream")
        lanes = super().unsupported()
        if self.service_tier:
            lanes["local"] = (
                "service_tier: the local lane has none; leave it out or choose another lane"
            )
        return lanes

    def output_token_limit(self) -> int | None:
        """Return the limit of one choice times `n`; None without a limit."""
        limit = self.max_completion_tokens or self.max_tokens
        return None if limit is None else limit * (self.n or 1)

    def prefixes(self, *, shared: bool = False) -> list[str]:
        """Return the prefix of the conversation, and of the system prompt if there is one.

        The conversation's prefix ends with its first user message, so it is the same at every turn.
        The system prompt consists of the leading system and developer messages. Tools and
        PROMPT_PARAMETERS are part of both.

        Args:
            shared: Whether tenants share an engine's prefix cache; else no two tenants have a hash
                in common.
        """
        roles = [message["role"] for message in self.messages]
        opening = roles.index("user") + 1 if "user" in roles else len(roles)
        system = sum(1 for _ in takewhile(("system", "developer").__contains__, roles))
        extra = self.extra_body or {}
        common = [
            "" if shared else self.tenant_id,
            list(self.tools or ()),
            [[name, extra[name]] for name in PROMPT_PARAMETERS if name in extra],
        ]
        lengths = dict.fromkeys((opening, system))
        return [prefix_hash([*common, self._head(length)]) for length in lengths if length]

    def _head(self, length: int) -> list[dict[str, object]]:
        return [dict(message) for message in self.messages[:length]]
