"""A class as `response_format`: sent and parsed as the openai SDK does."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from openai.lib._parsing._completions import type_to_response_format_param
from openai.lib._parsing._responses import type_to_text_format_param
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from primarch_fleet import Completion, CompletionRequest, ResponsesRequest
from primarch_fleet.errors import InvalidAnswer, InvalidRequest
from primarch_fleet.streaming import streamed
from tests.support.receipts import make_receipt


class Answer(BaseModel):
    """An answer with a number."""

    number: int


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Shape(BaseModel):
    kind: Literal["circle"] = "circle"
    color: Annotated[Color, Field(description="Its color")] = Color.RED
    radius: float | None = None


class Tree(BaseModel):
    """Nested and recursive, with defaults, descriptions, unions and maps."""

    name: Annotated[str, Field(description="A name", max_length=9)]
    root: Annotated[Answer, Field(description="A reference with a neighbour")]
    children: list[Tree] = []
    either: Answer | Shape
    shapes: list[Shape | None] | None = None
    pair: tuple[int, str] = (1, "a")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    counts: dict[str, int]


@dataclass
class Point:
    """A dataclass of pydantic, with a description."""

    x: Annotated[int, Field(description="Its place")]
    color: Color | None = None


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]


def sent(model: type[Any]) -> Any:
    request = CompletionRequest(
        model="m", messages=[{"role": "user", "content": "x"}], response_format=model
    )
    assert (
        CompletionRequest.parse(json.loads(json.dumps(request.to_wire()))).body() == request.body()
    )
    return request.body()["response_format"]


@pytest.mark.parametrize("model", [Answer, Shape, Tree, Open, Point])
def test_a_class_is_sent_as_the_openai_sdk_sends_it(model: type[Any]) -> None:
    assert sent(model) == type_to_response_format_param(model)


@pytest.mark.parametrize("model", [Answer, Shape, Tree, Open, Point])
def test_a_response_sends_a_class_as_the_openai_sdk_does(model: type[Any]) -> None:
    text = {"verbosity": "low"}
    request = ResponsesRequest(model="m", input="x", text=text, text_format=model)
    wire = json.loads(json.dumps(request.to_wire()))
    assert ResponsesRequest.parse(wire).body() == request.body()
    assert request.body()["text"] == text | {"format": type_to_text_format_param(model)}
    assert "text_format" not in wire
    for one in (request, streamed(request), request.model_copy()):
        assert one.answer_type is model


def test_the_name_of_a_schema_has_no_brackets() -> None:
    assert sent(Page[int])["json_schema"]["name"] == "Page_int_"


@pytest.mark.parametrize("wrong", [int, dict, Color])
def test_a_class_without_a_schema_is_an_error_that_says_what_to_pass(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^response_format: pass a subclass of pydantic"):
        CompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], response_format=wrong
        )


class Endless(BaseModel):
    """The schema of a field with a description is written in place of its reference."""

    inner: Annotated[Endless, Field(description="itself")] | None = None


class Unknown(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    call: Callable[[], None]


@pytest.mark.parametrize("model", [Endless, Unknown])
def test_a_class_that_has_no_strict_schema_is_an_error(model: type[Any]) -> None:
    with pytest.raises(InvalidRequest, match=rf"^response_format: {model.__name__} (has|contains)"):
        sent(model)
    with pytest.raises(InvalidRequest, match=rf"text_format: {model.__name__} (has|contains)"):
        ResponsesRequest(model="m", input="x", text_format=model)


def completion(content: str | None, reason: str = "stop", **message: Any) -> Completion:
    choice = {"finish_reason": reason, "message": {"content": content, **message}}
    return Completion(body={"choices": [choice]}, receipt=make_receipt())


def test_an_answer_is_parsed() -> None:
    assert completion('{"number": 4}').parse(Answer) == Answer(number=4)
    assert completion('{"number": 4}').parsed is None, "the class is not known"


def test_an_answer_is_parsed_as_a_dataclass() -> None:
    point = completion('{"x": 4, "color": "red"}').expect(Point).parsed
    assert point == Point(x=4, color=Color.RED)


def test_a_refusal_and_tool_calls_have_nothing_to_parse() -> None:
    assert completion(None, refusal="I cannot").parse(Answer) is None
    assert completion(None, tool_calls=[{"id": "1"}]).parse(Answer) is None


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        ('{"number": "a secret"}', "stop", "not of the type Answer: number: Input should be"),
        ("a secret", "stop", "not of the type Answer: Invalid JSON"),
        ('{"num', "length", "finish_reason is length: .*max_completion_tokens"),
        ('{"num', "content_filter", "finish_reason is content_filter"),
    ],
)
def test_another_answer_is_an_error_without_its_text(
    content: str, reason: str, message: str
) -> None:
    with pytest.raises(InvalidAnswer, match=message) as caught:
        completion(content, reason).parse(Answer)
    assert "secret" not in str(caught.value)
