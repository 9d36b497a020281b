"""Chat completions over loopback."""

import json
from typing import Annotated, Any, Literal

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field

from tests.integration.simulator.conformance import conforms
from workers.onebox.simulator.chat import complete
from workers.onebox.simulator.errors import ApiError
from workers.onebox.simulator.tokens import count, cut

QUESTION = [{"role": "user", "content": "why?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        },
    }
    for name in ("weather", "tide")
]


def ask(http: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"model": "m", "messages": QUESTION, **changes}
    return http.post("/chat/completions", json=body)


def answer(http: httpx.Client, **changes: Any) -> ChatCompletion:
    response = ask(http, **changes)
    assert response.status_code == 200, response.text
    return conforms(ChatCompletion, response.json())


def stream(http: httpx.Client, **changes: Any) -> list[ChatCompletionChunk]:
    response = ask(http, stream=True, **changes)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [conforms(ChatCompletionChunk, json.loads(event[6:])) for event in events[:-2]]


def test_an_answer_is_an_openai_object_that_echoes_the_question(http: httpx.Client) -> None:
    completion = answer(http)
    assert completion.choices[0].message.content == "Simulated answer to: why?"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "m"
    assert completion.created == 1_000_000


def test_usage_follows_the_documented_rule(http: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "whyé"}]
    usage = answer(http, messages=messages).usage
    assert usage is not None
    # 3 + (4 + ceil(9/4)) + (4 + ceil(5/4)); "Simulated answer to: whyé" is 26 bytes.
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (16, 7, 23)


def test_the_same_request_gets_the_same_answer_under_a_new_id(http: httpx.Client) -> None:
    first, second = answer(http), answer(http)
    assert first.choices == second.choices
    assert first.id != second.id


def test_text_parts_are_answered_and_other_parts_have_fixed_tokens(http: httpx.Client) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    content = [{"type": "text", "text": "see"}, image]
    completion = answer(http, messages=[{"role": "user", "content": content}])
    assert completion.choices[0].message.content == "Simulated answer to: see"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 3 + 4 + 1 + 85


def test_n_returns_n_different_choices(http: httpx.Client) -> None:
    choices = answer(http, n=3).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_truncates_the_answer_with_finish_reason_length(
    http: httpx.Client, name: str
) -> None:
    completion = answer(http, **{name: 2})
    assert completion.choices[0].message.content == "Simulate"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


def test_a_token_limit_that_is_not_reached_changes_nothing(http: httpx.Client) -> None:
    assert answer(http, max_tokens=7).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", [" to", ["never", " to", ": "]])
def test_an_answer_ends_before_the_first_stop_text(
    http: httpx.Client, stop: str | list[str]
) -> None:
    completion = answer(http, stop=stop)
    assert completion.choices[0].message.content == "Simulated answer"
    assert completion.choices[0].finish_reason == "stop"


def test_json_object_returns_json(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "in JSON please"}]
    completion = answer(http, messages=messages, response_format={"type": "json_object"})
    content = completion.choices[0].message.content
    assert content is not None
    assert json.loads(content) == {"answer": "Simulated answer to: in JSON please"}


def test_json_object_needs_the_word_json_in_the_messages(http: httpx.Client) -> None:
    response = ask(http, response_format={"type": "json_object"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


def test_a_named_tool_is_called_with_valid_arguments(http: httpx.Client) -> None:
    named = {"type": "function", "function": {"name": "tide"}}
    choice = answer(http, tools=TOOLS, tool_choice=named).choices[0]
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "tide"
    assert json.loads(call.function.arguments) == {"city": "why?", "days": 0}
    assert choice.finish_reason == "stop"


def test_a_required_tool_call_calls_the_first_tool(http: httpx.Client) -> None:
    choice = answer(http, tools=TOOLS, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].type == "function"
    assert choice.message.tool_calls[0].function.name == "weather"


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_no_tool_is_called_unless_forced(http: httpx.Client, choice: str | None) -> None:
    message = answer(http, tools=TOOLS, tool_choice=choice).choices[0].message
    assert message.tool_calls is None
    assert message.content == "Simulated answer to: why?"


def test_a_stream_has_the_text_of_the_plain_answer(http: httpx.Client) -> None:
    whole, chunks = answer(http, n=2), stream(http, n=2)
    assert len({chunk.id for chunk in chunks}) == 1
    for index, choice in enumerate(whole.choices):
        parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
        assert len(parts) > 3


def test_a_streamed_tool_call_has_the_same_arguments(http: httpx.Client) -> None:
    whole = answer(http, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    chunks = stream(http, tools=TOOLS, tool_choice="required")
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    functions = [call.function for call in calls if call.function]
    assert whole is not None
    assert whole[0].type == "function"
    assert functions[0].name == whole[0].function.name
    arguments = "".join(function.arguments or "" for function in functions)
    assert arguments == whole[0].function.arguments


def test_a_stream_ends_with_usage_only_if_requested(http: httpx.Client) -> None:
    assert all(chunk.usage is None for chunk in stream(http))
    chunks = stream(http, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == answer(http).usage


def test_the_sdk_reads_a_stream(client: OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "why?"}], stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Simulated answer to: why?"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 7}, "model", "invalid_type"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "bot"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", None),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"top_p": -1}, "top_p", "decimal_below_min_value"),
        ({"stop": list("abcde")}, "stop", "array_above_max_length"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}, "tool_choice", None),
    ],
)
def test_an_invalid_parameter_is_refused_by_name(
    http: httpx.Client, changes: dict[str, Any], param: str, code: str | None
) -> None:
    response = ask(http, **changes)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    if code is not None:
        assert error["code"] == code


def test_a_body_that_is_not_json_is_refused(http: httpx.Client) -> None:
    for content in (b"{", b"[]", b"\xff"):
        response = http.post("/chat/completions", content=content)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_a_404(http: httpx.Client) -> None:
    response = ask(http, model="nobody")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_an_embedding_model_does_not_chat(http: httpx.Client) -> None:
    response = ask(http, model="e")
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "function", "name"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
OPTIONS = ["messages", "n", "stop", "tools", "tool_choice", "response_format", "max_tokens"]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(OPTIONS), JSON))
def test_a_body_of_any_shape_is_answered_or_refused(body: dict[str, Any]) -> None:
    try:
        completion = complete({"model": "m", "messages": QUESTION, **body})
    except ApiError as error:
        assert error.status == 400
    else:
        conforms(ChatCompletion, completion.body("chatcmpl-1", 1))


@given(st.text(), st.integers(1, 20))
def test_cut_returns_the_longest_prefix_within_the_limit(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert text.startswith(short)
    assert count(short) <= limit
    assert short == text or count(text) > limit


class Leaf(BaseModel):
    name: Literal["leaf", "twig"]
    left: "Leaf | None"
    more: list["Leaf"]
    kind: Literal[7]


class Tree(BaseModel):
    root: Leaf
    tags: Annotated[list[str], Field(min_length=2)]
    age: Annotated[int, Field(ge=3)]
    sure: bool
    note: str = "may be left out"


@pytest.mark.parametrize("schema", [{"properties": 3}, {"$ref": 1}, {"enum": 5}, {"items": 7}])
def test_a_malformed_schema_is_refused(http: httpx.Client, schema: dict[str, Any]) -> None:
    inner = {"type": "array", "minItems": 1, **schema} if "items" in schema else schema
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}
    response = ask(http, response_format=form)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json_schema"


def test_a_json_schema_is_answered_with_valid_json(http: httpx.Client) -> None:
    schema = {"name": "tree", "schema": Tree.model_json_schema()}
    form = {"type": "json_schema", "json_schema": schema}
    content = answer(http, response_format=form).choices[0].message.content
    assert content is not None
    tree = Tree.model_validate_json(content, strict=True)
    assert tree.root == Leaf(name="leaf", left=None, more=[], kind=7)
    assert (len(tree.tags), tree.age, tree.sure) == (2, 3, True)
