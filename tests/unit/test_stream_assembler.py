"""The assembly of chunks into an answer, in the forms that engines send them."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from primarch_fleet.errors import EngineError
from workers.local.stream_assembler import ChatAssembler

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return HEAD | {"choices": [choice]}


def assembled(*chunks: dict[str, Any]) -> dict[str, Any]:
    assembler = ChatAssembler()
    for body in chunks:
        assembler.add(body)
    return assembler.body()


def test_text_and_usage_are_assembled() -> None:
    body = assembled(
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(0, {"content": "a "}),
        chunk(0, {"content": "b"}, "length"),
        HEAD | {"choices": [], "usage": USAGE},
    )
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "a b", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert (body["object"], body["usage"]) == ("chat.completion", USAGE)
    ChatCompletion.model_validate(body)


def test_each_choice_is_assembled_from_its_own_chunks() -> None:
    body = assembled(
        *(chunk(index, {"role": "assistant", "content": ""}) for index in (0, 1)),
        *(chunk(index, {"content": text}) for text in "ab" for index in (1, 0)),
        *(chunk(index, {}, "stop") for index in (1, 0)),
    )
    assert [choice["message"]["content"] for choice in body["choices"]] == ["ab", "ab"]


def test_assembled_tool_calls_equal_those_of_a_plain_answer() -> None:
    calls = [
        {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a": '}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "y", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    body = assembled(
        chunk(0, {"role": "assistant", "content": None}),
        *(chunk(0, {"tool_calls": [call]}) for call in calls),
        chunk(0, {}, "tool_calls"),
    )
    message = body["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "y", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    ChatCompletion.model_validate(body)


def test_reasoning_and_log_probabilities_are_kept() -> None:
    token: dict[str, Any] = {"token": "a", "bytes": None, "logprob": -1.0, "top_logprobs": []}
    content = chunk(0, {"content": "a"})
    content["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    body = assembled(
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(0, {"reasoning": "h"}),
        chunk(0, {"reasoning": "m"}),
        content,
        content,
        chunk(0, {}, "stop"),
    )
    [choice] = body["choices"]
    assert choice["message"]["reasoning"] == "hm"
    assert choice["logprobs"]["content"] == [token, token]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [HEAD | {"choices": [], "usage": USAGE}],
        [chunk(0, {"content": "a"})],
        [chunk(0, {"content": "a"}, "stop"), chunk(1, {"content": "b"})],
    ],
)
def test_an_incomplete_stream_is_an_error(chunks: list[dict[str, Any]]) -> None:
    with pytest.raises(EngineError, match="ended a stream"):
        assembled(*chunks)
