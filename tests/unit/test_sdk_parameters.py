"""What the installed openai SDK sends is a field of a request, or is refused with a reason."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai import NOT_GIVEN, omit, pydantic_function_tool
from openai.resources.chat.completions import AsyncCompletions
from openai.resources.embeddings import AsyncEmbeddings
from openai.resources.moderations import AsyncModerations
from openai.resources.responses import AsyncResponses
from openai.types.chat import ChatCompletionMessage
from openai.types.chat import completion_create_params as chat
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.moderation_create_params import ModerationCreateParams
from openai.types.responses import ResponseOutputMessage
from openai.types.responses import response_create_params as responses
from openai.types.shared import Reasoning
from pydantic import BaseModel

from primarch_fleet import (
    CompletionRequest,
    EmbeddingRequest,
    ModerationRequest,
    ResponsesRequest,
)
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.requests import Request
from primarch_fleet.requests.base import FIELD_NAMES, PROVIDER_NAMES
from primarch_fleet.requests.refused import REFUSED_ARGUMENTS, refused_keys
from tests.support import parameters

CHAT = CompletionRequest(model="m", messages=[{"role": "user", "content": "hello"}])
EMBEDDING = EmbeddingRequest(model="m", input="hello")
RESPONSE = ResponsesRequest(model="m", input="hello")
MODERATION = ModerationRequest(model="m", input="hello")
#: The smallest request of each kind.
PLAIN: dict[type[Request], Request] = {
    type(plain): plain for plain in (CHAT, EMBEDDING, RESPONSE, MODERATION)
}
#: By kind of request: the SDK's types of its body, and the SDK's method.
SDK: dict[type[Request], tuple[list[type], Callable[..., Any]]] = {
    CompletionRequest: (
        [chat.CompletionCreateParamsNonStreaming, chat.CompletionCreateParamsStreaming],
        AsyncCompletions.create,
    ),
    EmbeddingRequest: ([EmbeddingCreateParams], AsyncEmbeddings.create),
    ModerationRequest: ([ModerationCreateParams], AsyncModerations.create),
    ResponsesRequest: (
        [responses.ResponseCreateParamsNonStreaming, responses.ResponseCreateParamsStreaming],
        AsyncResponses.create,
    ),
}


def hints(kind: type[Request]) -> dict[str, Any]:
    types, _ = SDK[kind]
    return {name: hint for one in types for name, hint in get_type_hints(one).items()}


def field(name: str) -> str:
    """Our name for a name of the SDK."""
    return FIELD_NAMES.get(name, name)


def choices(hint: Any) -> Iterator[Any]:
    """The values that an annotation lists."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) is not list:
        for part in get_args(hint):
            yield from choices(part)


@pytest.mark.parametrize("kind", SDK)
def test_each_parameter_of_the_sdk_is_a_field_or_refused_with_a_reason(kind: type[Request]) -> None:
    _, method = SDK[kind]
    arguments = set(inspect.signature(method).parameters) - {"self"}
    names = {field(name) for name in hints(kind).keys() | arguments}
    assert names - kind.model_fields.keys() - REFUSED_ARGUMENTS.keys() == set()


@pytest.mark.parametrize("kind", SDK)
def test_each_value_that_the_sdk_lists_is_accepted(kind: type[Request]) -> None:
    plain = PLAIN[kind]
    for name, hint in hints(kind).items():
        for value in choices(hint):
            assert getattr(kind.parse(plain.to_wire() | {field(name): value}), field(name)) == value


@pytest.mark.parametrize(
    ("plain", "values"),
    [
        (CHAT, parameters.CHAT),
        (EMBEDDING, parameters.EMBEDDING),
        (RESPONSE, parameters.RESPONSE),
    ],
    ids=["chat", "embedding", "response"],
)
def test_each_parameter_is_in_the_body_under_the_name_of_the_sdk(
    plain: Request, values: dict[str, Any]
) -> None:
    names = {field(name) for name in hints(type(plain))}
    assert values.keys() == names - plain.to_wire().keys(), "a value for each parameter"
    request = type(plain).parse(plain.to_wire() | values)
    sent = {PROVIDER_NAMES.get(name, name): value for name, value in values.items()}
    assert request.body() == plain.body() | sent


@pytest.mark.parametrize(
    "value",
    [
        {"reasoning_effort": {"effort": "high", "summary": "auto"}},
        {"reasoning_effort": "a level of tomorrow"},
        {"service_tier": "a tier of tomorrow"},
        {"top_logprobs": 50},
        {"top_logprobs": -1},
        {"logit_bias": {"50256": -100}},
        {"stop": "end"},
        {"n": 200},
        {"temperature": 2.5},
        {"presence_penalty": 3.0},
        {"verbosity": "chatty"},
        {"tools": ({"type": "custom", "custom": {"name": "f"}},)},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"web_search_options": {}},
        {"messages": [{"role": "ipython", "content": "5"}]},
    ],
    ids=str,
)
def test_a_value_that_some_provider_accepts_is_accepted(value: dict[str, Any]) -> None:
    assert CompletionRequest.parse(CHAT.to_wire() | value)


def test_null_is_the_same_as_no_value() -> None:
    nulls = {name: None for name in parameters.CHAT}
    assert CompletionRequest.parse(CHAT.to_wire() | nulls).body() == CHAT.body()


def test_a_message_of_an_earlier_answer_may_be_an_object_of_the_sdk() -> None:
    answer = ChatCompletionMessage(role="assistant", content="hi")
    messages: Any = [{"role": "user", "content": "hello"}, answer]
    sent = CompletionRequest(model="m", messages=messages).body()["messages"]
    assert sent[1] == {"role": "assistant", "content": "hi"}


def test_extra_body_is_part_of_the_body() -> None:
    request = CompletionRequest.parse(CHAT.to_wire() | {"extra_body": parameters.EXTRA_BODY})
    assert request.body() == CHAT.body() | parameters.EXTRA_BODY
    assert request.openai_body() == CHAT.body()


@pytest.mark.parametrize("name", ["timeout", "extra_query"])
def test_a_refused_argument_says_what_to_set_instead(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name}: .*fleet\.yaml"):
        CompletionRequest.parse(CHAT.to_wire() | {name: 5})


def test_a_parameter_that_the_sdk_does_not_have_belongs_in_extra_body() -> None:
    with pytest.raises(InvalidRequest, match=r"^top_k: .*extra_body"):
        CompletionRequest.parse(CHAT.to_wire() | {"top_k": 5})


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apiKey", "API-KEY", "api_base", "base_url", "organization", "api_version"),
        *("custom_llm_provider", "fallbacks", "num_retries", "mock_response", "model_list"),
        *("success_callback", "callbacks", "headers", "extra_headers", "extra_query", "no-log"),
        *("aws_access_key_id", "vertex_credentials", "azure_ad_token", "litellm_metadata"),
        *("model", "messages", "stream", "metadata", "tenant_id", "extra_body", "max_tokens", "n"),
        *("max_output_tokens", "maxOutputTokens", "generationConfig", "system", "request_id"),
        *(
            "priority",
            "models",
            "drop_params",
            "timeout",
            "input_cost_per_token",
            "_router_weights",
        ),
    ],
)
def test_extra_body_carries_no_routing_no_credentials_and_no_field_of_the_request(
    name: str,
) -> None:
    with pytest.raises(InvalidRequest, match=rf"extra_body\.{name}: ") as caught:
        CompletionRequest.parse(CHAT.to_wire() | {"extra_body": {name: "a private value"}})
    assert "a private value" not in str(caught.value)


def test_extra_body_may_have_each_parameter_of_engines_and_providers() -> None:
    for kind, extra in (
        (CompletionRequest, parameters.EXTRA_BODY),
        (EmbeddingRequest, parameters.EMBEDDING_EXTRA_BODY),
    ):
        assert refused_keys(extra, kind.model_fields) == {}


@pytest.mark.parametrize("wrong", [{"X: y": "1"}, {"X-A": "1\r\nX-B: 2"}, {"": "1"}])
def test_a_header_is_one_line(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^extra_headers"):
        CompletionRequest.parse(CHAT.to_wire() | {"extra_headers": wrong})


def test_the_representation_shows_neither_extra_body_nor_headers() -> None:
    private = {"extra_body": {"documents": ["SECRET"]}, "extra_headers": {"X-A": "SECRET"}}
    assert "SECRET" not in repr(CompletionRequest.parse(CHAT.to_wire() | private))


class Answer(BaseModel):
    """A schema, as producers define it."""

    number: int


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT_FUNCTION = {"type": "function", "function": {"name": "f"}}
FLAT_FUNCTION = {"type": "function", "name": "f", "strict": False}
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": None, "tool_calls": [CALL]}
OUTPUT = {
    **{"id": "1", "type": "message", "role": "assistant", "status": "completed"},
    "content": [{"type": "output_text", "text": "hi", "annotations": []}],
}


def iter_once(*items: Any) -> Iterator[Any]:
    yield from items


@pytest.mark.parametrize(
    ("kind", "given", "sent"),
    [
        (
            CompletionRequest,
            {"messages": (ChatCompletionMessage.model_validate(ANSWER),)},
            {"messages": [ANSWER]},
        ),
        (
            CompletionRequest,
            {
                "messages": [
                    {**ANSWER, "tool_calls": ChatCompletionMessage(**ANSWER).tool_calls},
                    {"role": "user", "content": ({"type": "text", "text": "hi"},)},
                ]
            },
            {
                "messages": [
                    ANSWER,
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                ]
            },
        ),
        (CompletionRequest, {"logit_bias": {50256: -100}}, {"logit_bias": {"50256": -100}}),
        (CompletionRequest, {"temperature": omit, "seed": NOT_GIVEN}, {}),
        (
            CompletionRequest,
            {"extra_body": {"stop_token_ids": (1, 2), "schema": Answer(number=1)}},
            {"stop_token_ids": [1, 2], "schema": {"number": 1}},
        ),
        (CompletionRequest, {"messages": {1: USER}.values()}, {"messages": [USER]}),
        (CompletionRequest, {"messages": (one for one in [USER])}, {"messages": [USER]}),
        (CompletionRequest, {"tools": map(dict, [CHAT_FUNCTION])}, {"tools": [CHAT_FUNCTION]}),
        (ResponsesRequest, {"input": {1: USER}.values()}, {"input": [USER]}),
        (ResponsesRequest, {"tools": iter_once(CHAT_FUNCTION)}, {"tools": [FLAT_FUNCTION]}),
        (EmbeddingRequest, {"input": filter(None, ["a", "b"])}, {"input": ["a", "b"]}),
        (EmbeddingRequest, {"input": range(2)}, {"input": [0, 1]}),
        (EmbeddingRequest, {"input": ("a", "b")}, {"input": ["a", "b"]}),
        (EmbeddingRequest, {"input": ((1, 2), [3])}, {"input": [[1, 2], [3]]}),
        (
            ResponsesRequest,
            {"tools": [pydantic_function_tool(Answer), {"type": "web_search"}, CHAT_FUNCTION]},
            {
                "tools": [
                    {"type": "function", **pydantic_function_tool(Answer)["function"]},
                    {"type": "web_search"},
                    FLAT_FUNCTION,
                ]
            },
        ),
        (
            ResponsesRequest,
            {
                "input": [{"role": "user", "content": "hi"}, ResponseOutputMessage(**OUTPUT)],
                "reasoning": Reasoning(effort="low"),
            },
            {
                "input": [{"role": "user", "content": "hi"}, OUTPUT],
                "reasoning": {"effort": "low"},
            },
        ),
    ],
)
def test_what_the_sdk_takes_for_json_is_json(
    kind: type[Request], given: dict[str, Any], sent: dict[str, Any]
) -> None:
    plain = PLAIN[kind]
    request = kind(**{**plain.to_wire(), **given})
    assert request.body() == plain.body() | sent
    assert kind.parse(json.loads(json.dumps(request.to_wire()))).body() == request.body()


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (CompletionRequest, {"response_format": int}, "response_format: .*json_schema"),
        (ResponsesRequest, {"text": Answer}, "text: .*text_format"),
        (CompletionRequest, {"api_key": "hunter2"}, "api_key: accounts, .*fleet.yaml"),
        (CompletionRequest, {"max_output_tokens": 5}, "max_output_tokens: .*max_completion_tokens"),
        (ResponsesRequest, {"text_format": int}, "text_format: .*BaseModel"),
        (ResponsesRequest, {"text_format": {"type": "text"}}, "text_format: .*BaseModel"),
        (
            ResponsesRequest,
            {"text_format": Answer, "text": {"format": {"type": "text"}}},
            "text_format: text.format is another one",
        ),
        (ResponsesRequest, {"max_tokens": 5}, "max_tokens: .*max_output_tokens of a response"),
        (ResponsesRequest, {"extra_body": {"max_tokens": 5}}, "extra_body.max_tokens: money"),
        (ResponsesRequest, {"extra_body": {"max_completion_tokens": 5}}, "money is reserved"),
        (ResponsesRequest, {"extra_body": {"n": 5}}, "extra_body.n: money is reserved"),
        (ResponsesRequest, {"extra_body": {"messages": []}}, "extra_body.messages: the prompt"),
        (CompletionRequest, {"extra_body": {"input": "x"}}, "extra_body.input: the prompt"),
        (EmbeddingRequest, {"input_type": "query"}, "input_type: .*extra_body"),
    ],
)
def test_what_is_refused_says_what_to_do_instead(
    kind: type[Request], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        kind(**{**PLAIN[kind].to_wire(), **given})
    assert "hunter2" not in str(caught.value)


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(2000):
        nested = [nested]
    with pytest.raises(InvalidRequest, match="extra_body"):
        CompletionRequest(**{**CHAT.to_wire(), "extra_body": {"a": nested}})
