"""Which requests are equal to the cache, and which answers it keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from primarch_fleet import Completion
from primarch_fleet.contract import CompletionRequest, EmbeddingRequest, Request
from tasks.response_cache import cache_key, is_complete

TAGS = ["a", "b"]
CHAT = CompletionRequest(model="m", messages=[{"role": "user", "content": "Say hello."}], tags=TAGS)
EMBEDDING = EmbeddingRequest(model="m", input="Hello", tags=TAGS)


def test_equal_requests_are_equal_whatever_the_order_of_their_keys() -> None:
    one, two = ({"role": "user", "content": "a"}, {"content": "a", "role": "user"})
    first, second = (CompletionRequest(model="m", messages=[each]) for each in (one, two))
    assert cache_key("realtime", first) == cache_key("realtime", second)


def test_tenants_lanes_and_tags_are_kept_apart() -> None:
    plain = EmbeddingRequest(model="m", input="a")
    tagged, foreign = (
        EmbeddingRequest(model="m", input="a", **one)
        for one in ({"tags": ["eu"]}, {"tenant_id": "t"})
    )
    digests = {cache_key("realtime", one) for one in (plain, tagged, foreign)}
    assert len({*digests, cache_key("local", plain)}) == 4


#: A value for each field that is the provider's, other than what a request without it has.
PARAMETERS: dict[type[Request], dict[str, Any]] = {
    CompletionRequest: {
        "model": "other",
        "messages": [{"role": "user", "content": "Say goodbye."}],
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.5,
        "n": 2,
        "stop": "end",
        "seed": 1,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "logit_bias": {"1": 1.0},
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "service_tier": "flex",
        "stream": True,
    },
    EmbeddingRequest: {
        "model": "other",
        "input": "Goodbye",
        "dimensions": 9,
        "encoding_format": "base64",
    },
}
SAME: dict[str, Any] = {
    "lane": "realtime",
    "priority": "high",
    "cost_preference": "cost",
    "user_id": "u",
    "tags": ["b", "a", "a"],
    "routing_strategy": "least-busy",
    "deadline": datetime.now(UTC),
    "max_latency": 1.0,
    "quality": 0.5,
    "return_exceptions": True,
    "idempotency_key": "k",
    "cache_ttl": 60.0,
    "metadata": {"n": 1},
    "schema_version": 1,
}


@pytest.mark.parametrize("plain", [CHAT, EMBEDDING], ids=["chat", "embedding"])
def test_each_field_of_the_providers_makes_another_request_and_no_other_field_does(
    plain: Request,
) -> None:
    fields, others = PARAMETERS[type(plain)], SAME.items()
    envelope = {*SAME, "tenant_id", "max_cost"}  # the one keeps apart, the other needs a length
    assert fields.keys() | envelope == type(plain).model_fields.keys()

    def asked_for(name: str, value: Any) -> str:
        return cache_key("realtime", type(plain)(**plain.to_wire() | {name: value}))

    assert {asked_for(*one) for one in others} == {cache_key("realtime", plain)}
    assert len({cache_key("realtime", plain), *map(asked_for, fields, fields.values())}) == 1 + len(
        fields
    )


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("stop", True),
        ("length", True),
        ("tool_calls", True),
        ("content_filter", False),
        (None, False),
    ],
)
def test_only_answers_that_came_to_their_end_are_kept(reason: str | None, kept: bool) -> None:
    answer: Any = {"body": {"choices": [{"finish_reason": "stop"}, {"finish_reason": reason}]}}
    assert is_complete(Completion.model_construct(**answer)) is kept
