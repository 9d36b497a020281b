"""The assembly of chunks into an answer, in the forms that engines send them."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from workers.stream_assembler import ChatAssembler, IncompleteStream

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


TOKEN: dict[str, Any] = {"token": "a", "bytes": None, "logprob": -1.0, "top_logprobs": []}


def test_reasoning_and_log_probabilities_are_kept() -> None:
    content = chunk(0, {"content": "a"})
    content["choices"][0]["logprobs"] = {"content": [TOKEN], "refusal": None}
    body = assembled(
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(0, {"reasoning": "h"}),
        chunk(0, {"reasoning": "m"}),
        copy.deepcopy(content),
        content,
        chunk(0, {}, "stop"),
    )
    [choice] = body["choices"]
    assert choice["message"]["reasoning_content"] == "hm"
    assert "reasoning" not in choice["message"]
    assert choice["logprobs"] == {"content": [TOKEN, TOKEN], "refusal": None}


def calls_of(*parts: dict[str, Any]) -> list[Any]:
    """The id, name and arguments of each call that these parts form."""
    body = assembled(
        *(chunk(0, {"tool_calls": [part]}) for part in parts), chunk(0, {}, "tool_calls")
    )
    calls = body["choices"][0]["message"]["tool_calls"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def part(
    arguments: str, call_id: str | None = None, name: str | None = None, index: int | None = 0
) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


F, G = ("x", "f", '{"a": 1}'), ("y", "g", '{"b": 2}')


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([part('{"a": ', "x", "f"), part("1}"), part('{"b": 2}', "y", "g", 1)], [F, G]),
        # Each call has index 0, or none, and an id of its own.
        ([part('{"a": ', "x", "f"), part("1}"), part('{"b": 2}', "y", "g")], [F, G]),
        ([part('{"a": 1}', "x", "f", None), part('{"b": 2}', "y", "g", None)], [F, G]),
        # Two calls of one function with the same arguments.
        ([part("{}", "x", "f"), part("{}", "y", "f")], [("x", "f", "{}"), ("y", "f", "{}")]),
        # Id and name in each piece; pieces of two calls in turn.
        (
            [
                part('{"a": ', "x", "f"),
                part('{"b": ', "y", "g"),
                part("1}", "x", "f"),
                part("2}", "y", "g"),
            ],
            [F, G],
        ),
        # The name in each piece, without ids: a call ends when its arguments are complete.
        (
            [
                part('{"a": ', name="f"),
                part("1}", name="f"),
                part('{"a": 1}', name="f"),
                part('{"b": 2}', name="g"),
            ],
            [("call_0_0", *F[1:]), ("call_0_1", *F[1:]), ("call_0_2", *G[1:])],
        ),
        # Another id in each piece, the name only in the first.
        ([part('{"a": ', "x", "f"), part("1}", "x2")], [F]),
        # An empty id is none.
        ([part('{"a": ', "x", "f"), part("1}", "", "")], [F]),
    ],
)
def test_parallel_tool_calls_are_kept_apart(parts: list[dict[str, Any]], calls: list[Any]) -> None:
    assert calls_of(*copy.deepcopy(parts)) == calls
    # Readers of the chunks, with OpenAI's library, get the same.
    assembler, reader = ChatAssembler(), ChatCompletionStreamState[None]()
    for item in copy.deepcopy(parts):
        readable = assembler.add(chunk(0, {"tool_calls": [item]}))
        reader.handle_chunk(ChatCompletionChunk.model_validate(readable))
    message = reader.current_completion_snapshot.choices[0].message
    read = [
        (call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
    ]
    assert [(call_id or f"call_0_{n}", *rest) for n, (call_id, *rest) in enumerate(read)] == calls


def test_each_part_of_a_message_is_assembled() -> None:
    image = {"type": "image_url", "index": 0, "image_url": {"url": "data:image/png;base64,AA=="}}
    note = {"type": "url_citation", "url_citation": {"url": "http://x", "start_index": 0}}
    deltas: list[dict[str, Any]] = [
        {"audio": {"id": "a"}},
        {"audio": {"transcript": "hi "}},
        {"audio": {"transcript": "you", "data": "QQ=="}},
        {"audio": {"data": "QkM=", "expires_at": 9}},
        {"images": [image]},
        {"annotations": [note]},
        {"annotations": [note]},
        {"refusal": "I "},
        {"refusal": "cannot"},
        {"thinking_blocks": [{"type": "thinking", "thinking": "let ", "index": 0}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "me", "index": 0}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "a"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "b", "signature": "s"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "c"}]},
        {"function_call": {"name": "f", "arguments": "{"}},
        {"function_call": {"arguments": "}"}},
    ]
    body = assembled(*(chunk(0, delta) for delta in deltas), chunk(0, {}, "stop"))
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "audio": {"id": "a", "transcript": "hi you", "data": "QUJD", "expires_at": 9},
        "images": [image],
        "annotations": [note, note],
        "refusal": "I cannot",
        "thinking_blocks": [{"type": "thinking", "thinking": "let me", "signature": "s"}],
        "reasoning_details": [
            {"type": "reasoning.text", "text": "ab", "signature": "s"},
            {"type": "reasoning.text", "text": "c"},
        ],
        "function_call": {"name": "f", "arguments": "{}"},
    }


def test_the_fields_beside_the_choices_are_kept() -> None:
    body = assembled(
        chunk(0, {"content": "a"}) | {"service_tier": None, "system_fingerprint": "fp"},
        chunk(0, {}, "max_tokens") | {"service_tier": "flex", "provider": "p"},
        HEAD | {"id": "other", "choices": [], "usage": USAGE},
    )
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["native_finish_reason"] == "max_tokens"
    kept = {name: body[name] for name in ("id", "service_tier", "system_fingerprint", "provider")}
    assert kept == {
        "id": "c",
        "service_tier": "flex",
        "system_fingerprint": "fp",
        "provider": "p",
    }


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
    with pytest.raises(IncompleteStream, match="a stream ended"):
        assembled(*copy.deepcopy(chunks))


_texts = st.text("ab {}", max_size=3)
_deltas = st.one_of(
    st.fixed_dictionaries({"content": _texts}),
    st.fixed_dictionaries({"refusal": _texts}),
    st.fixed_dictionaries(
        {
            "tool_calls": st.integers(0, 2).map(
                lambda index: [{"index": index, "function": {"arguments": "{"}}]
            )
        }
    ),
)


def _opened(index: int) -> list[dict[str, Any]]:
    """The first chunks of a choice: its role, and three tool calls."""
    calls = [
        {
            "index": n,
            "id": f"{index}-{n}",
            "type": "function",
            "function": {"name": f"f{n}", "arguments": ""},
        }
        for n in range(3)
    ]
    parts = [{"tool_calls": [call]} for call in calls]
    deltas: list[dict[str, Any]] = [{"role": "assistant"}, *parts]
    return [chunk(index, delta) for delta in deltas]


@given(st.lists(st.tuples(st.integers(0, 1), _deltas, st.booleans()), max_size=12))
def test_a_well_formed_stream_is_assembled_as_openais_library_does(
    parts: list[tuple[int, dict[str, Any], bool]],
) -> None:
    chunks = [*_opened(0), *_opened(1)]
    for index, delta, with_logprobs in parts:
        chunks.append(chunk(index, copy.deepcopy(delta)))
        if with_logprobs:
            chunks[-1]["choices"][0]["logprobs"] = {"content": [TOKEN], "refusal": None}
    chunks += [chunk(0, {}, "stop"), chunk(1, {}, "length"), HEAD | {"choices": [], "usage": USAGE}]
    library = ChatCompletionStreamState[None]()
    for item in chunks:
        library.handle_chunk(ChatCompletionChunk.model_validate(item))
    expected = library.current_completion_snapshot.to_dict(mode="json")
    assert meaning(assembled(*copy.deepcopy(chunks))) == meaning(expected)


def meaning(body: Any) -> Any:
    """An answer without the fields that only one of the two writes: nulls, empty texts, indexes."""
    completion = ChatCompletion.model_validate(body)
    for choice in completion.choices:
        choice.message.content = choice.message.content or None
        choice.message.refusal = choice.message.refusal or None
        for call in choice.message.tool_calls or ():
            if call.type == "function":
                call.function.arguments = call.function.arguments or "{}"
    return completion.model_dump(
        exclude_none=True,
        exclude={
            "choices": {
                "__all__": {
                    "message": {
                        "parsed": True,
                        "tool_calls": {
                            "__all__": {"index": True, "function": {"parsed_arguments": True}}
                        },
                    }
                }
            }
        },
    )
