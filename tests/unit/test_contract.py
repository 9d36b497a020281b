"""The wire contract: what is accepted, what is rejected, and that errors repeat nothing private."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primarch_fleet import CompletionRequest, EmbeddingRequest, FleetError
from primarch_fleet.errors import InvalidRequest

SECRET = "a private prompt"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("lane", {"lane": "express"}),
        ("messages", {"messages": []}),
        ("messages.0: role", {"messages": [{"role": 5, "content": "x"}]}),
        ("messages.0: role", {"messages": [{"content": "x"}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": b"x"}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": [{"x": math.nan}]}]}),
        ("messages.0: content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages.0", {"messages": ["hello"]}),
        ("messages", {"messages": "hello"}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("n", {"n": -3}),
        ("max_latency", {"max_latency": -1.0}),
        ("max_cost", {"max_cost": -1}),
        ("temperature", {"temperature": math.nan}),
        ("metadata.a", {"metadata": {"a": math.inf}}),
        ("metadata.a", {"metadata": {"a": b"bytes"}}),
        ("tools.0.x", {"tools": [{"x": math.nan}]}),
        ("stream", {"stream": True, "lane": "batch"}),
        ("deadline", {"deadline": "2026-01-01T00:00:00"}),
        ("schema_version", {"schema_version": 2}),
        ("temprature", {"temprature": 1}),
    ],
)
def test_the_error_names_the_wrong_field_and_contains_no_value(
    field: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CompletionRequest(**CHAT | wrong)
    assert str(caught.value).startswith(field)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value, FleetError)
    assert not caught.value.retryable


@pytest.mark.parametrize("wrong", ["", [], [1.5], ["a", 1], math.nan, None, b"x"])
def test_an_embedding_needs_text_or_tokens(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^input"):
        EmbeddingRequest(model="m", input=wrong)


@pytest.mark.parametrize("wrong", [None, "text", [1], 5])
def test_a_request_that_is_not_an_object_is_rejected_with_its_type(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match=type(wrong).__name__):
        CompletionRequest.parse(wrong)


def test_max_cost_needs_a_token_limit() -> None:
    with pytest.raises(InvalidRequest, match="max_completion_tokens"):
        CompletionRequest(**CHAT, max_cost=100)
    assert CompletionRequest(**CHAT, max_cost=100, max_tokens=7, n=2).output_token_limit() == 14
    with pytest.raises(InvalidRequest, match="max_cost"):
        CompletionRequest(**CHAT, max_cost_nanousd=100)


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        ({}, None),
        ({"max_cost": 2}, 2_000),
        ({"max_cost_nanousd": 1_999}, 1_999),
        ({"max_cost": 2, "max_cost_nanousd": 1_999}, 1_999),
        ({"max_cost": 2, "max_cost_nanousd": 2_001}, 2_000),
    ],
)
def test_the_cost_cap_is_the_lower_of_nano_dollars_and_micro_dollars(
    fields: dict[str, Any], cap: int | None
) -> None:
    assert CompletionRequest(**CHAT, max_tokens=7, **fields).cost_cap == cap


def test_the_body_contains_only_openai_parameters() -> None:
    request = CompletionRequest(
        **CHAT, temperature=0.5, seed=None, tenant_id="t", tags=["a"], metadata={"k": 1}
    )
    assert request.body() == {**CHAT, "temperature": 0.5}


def test_a_message_keeps_keys_that_the_fleet_does_not_know() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function"}],
    }
    assert CompletionRequest(model="m", messages=[message]).body()["messages"] == [message]


def test_repr_does_not_contain_the_prompt() -> None:
    assert SECRET not in repr(CompletionRequest(**CHAT))
    assert SECRET not in repr(EmbeddingRequest(model="m", input=SECRET))


@pytest.mark.parametrize("wrong", ["hello", b"hello", {"role": "user", "content": "x"}, 5, None])
def test_messages_that_are_no_list_are_an_error_that_shows_a_list(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages: pass a list of messages, such as \[\{"):
        CompletionRequest(model="m", messages=wrong)


@pytest.mark.parametrize("wrong", ["hello", ("user", "x"), None])
def test_a_message_that_is_no_object_is_an_error_that_shows_an_object(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages\.1: a message is an object, such as \{"):
        CompletionRequest(model="m", messages=[{"role": "user", "content": "x"}, wrong])


@pytest.mark.parametrize("duration", [30, 0.5, -1, "30", timedelta(seconds=30)])
def test_a_duration_as_deadline_is_an_error_that_asks_for_a_moment(duration: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^deadline: a moment is needed, not a duration"):
        CompletionRequest(**CHAT, deadline=duration)


@pytest.mark.parametrize(
    "moment", [1_800_000_000, 1_800_000_000.0, "1800000000", "2027-01-15T08:00:00Z"]
)
def test_a_deadline_may_be_unix_seconds_or_text(moment: Any) -> None:
    request = CompletionRequest(**CHAT, deadline=moment)
    assert request.deadline == datetime(2027, 1, 15, 8, tzinfo=UTC)


def test_the_time_left_counts_down_to_the_deadline() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    request = CompletionRequest(**CHAT, deadline=now + timedelta(seconds=30))
    assert request.time_left(now) == 30
    assert request.time_left(now + timedelta(minutes=1)) == -30
    assert CompletionRequest(**CHAT).time_left(now) is None


SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "look"}}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def prefixes(*messages: dict[str, str], **fields: Any) -> list[str]:
    return CompletionRequest(model="m", messages=list(messages), **fields).prefixes()


def test_every_turn_of_a_conversation_has_the_same_prefixes() -> None:
    first = prefixes(SYSTEM, message("user", "hello"))
    second = prefixes(
        SYSTEM, message("user", "hello"), message("assistant", "hi"), message("user", "bye")
    )
    assert first == second
    assert len(first) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", prefix) for prefix in first)


def test_conversations_with_the_same_system_prompt_share_its_prefix() -> None:
    first, second = (prefixes(SYSTEM, message("user", text)) for text in ("one", "other"))
    assert first[0] != second[0]
    assert first[1] == second[1]
    assert prefixes(message("developer", "Be brief."), message("user", "one"))[1] != first[1]


def test_a_request_without_a_system_prompt_has_one_prefix() -> None:
    user, late = message("user", "hello"), message("user", "bye")
    assert prefixes(user) == prefixes(user, SYSTEM, late)
    assert len(prefixes(user)) == 1
    assert len(prefixes(SYSTEM)) == 1, "there is no user message"
    assert EmbeddingRequest(model="m", input="hello").prefixes() == []


def test_different_tools_give_different_prefixes() -> None:
    messages = SYSTEM, message("user", "hello")
    with_tool = prefixes(*messages, tools=[TOOL])
    assert not set(with_tool) & set(prefixes(*messages))
    assert with_tool == prefixes(*messages, tools=[dict(reversed(TOOL.items()))])


def test_routing_fields_and_sampling_parameters_do_not_change_the_prefixes() -> None:
    fields: dict[str, Any] = {"priority": "high", "lane": "local", "seed": 1}
    messages = dict(reversed(SYSTEM.items())), message("user", "hello")
    assert prefixes(*messages, **fields) == prefixes(SYSTEM, message("user", "hello"))


def test_tenants_have_no_prefix_in_common_unless_they_share_a_cache() -> None:
    requests = [
        CompletionRequest(model="m", messages=[SYSTEM, message("user", "hello")], tenant_id=name)
        for name in ("a", "b")
    ]
    first, second = (request.prefixes() for request in requests)
    assert not set(first) & set(second)
    first, second = (request.prefixes(shared=True) for request in requests)
    assert first == second


@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_template_kwargs", {"enable_thinking": False}), ("cache_salt", "s")],
)
def test_parameters_that_change_the_prompt_change_the_prefixes(name: str, value: Any) -> None:
    messages = SYSTEM, message("user", "hello")
    changed = prefixes(*messages, extra_body={name: value, "top_k": 5})
    assert not set(changed) & set(prefixes(*messages, extra_body={"top_k": 5}))
    assert prefixes(*messages, extra_body={"top_k": 5}) == prefixes(*messages)


def test_prefixes_are_the_same_after_a_json_round_trip() -> None:
    request = CompletionRequest(model="m", messages=[SYSTEM, message("user", "héllo")])
    sent = json.loads(json.dumps(request.to_wire()))
    assert CompletionRequest.parse(sent).prefixes() == request.prefixes()


@given(
    text=st.text(min_size=1),
    tenant=st.text(min_size=1, max_size=256),
    temperature=st.floats(0, 2) | st.none(),
    deadline=st.datetimes(min_value=datetime(2020, 1, 1), timezones=st.just(UTC)) | st.none(),  # noqa: DTZ001
    metadata=st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
)
def test_a_request_is_the_same_after_a_json_round_trip(**fields: Any) -> None:
    request = CompletionRequest(
        model="m",
        messages=[{"role": "user", "content": fields["text"]}],
        tenant_id=fields["tenant"],
        temperature=fields["temperature"],
        deadline=fields["deadline"],
        metadata=fields["metadata"],
    )
    assert CompletionRequest.parse(json.loads(json.dumps(request.to_wire()))) == request


def test_a_request_that_was_changed_to_what_json_cannot_hold_is_invalid() -> None:
    request = CompletionRequest(model="m", messages=[{"role": "user", "content": "hi"}])
    changed: Any = request.messages
    changed.append(object())
    with pytest.raises(InvalidRequest, match="JSON cannot hold"):
        request.to_wire()
