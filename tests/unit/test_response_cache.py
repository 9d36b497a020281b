"""Which requests have the same cache key, and which answers are cached."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from primarch_fleet.answers import form_of
from primarch_fleet.requests import CompletionRequest, EmbeddingRequest, Request
from tasks.response_cache import cache_key
from tests.support import parameters

TAGS = ["a", "b"]
CHAT = CompletionRequest(model="m", messages=[{"role": "user", "content": "Say hello."}], tags=TAGS)
EMBEDDING = EmbeddingRequest(model="m", input="Hello", tags=TAGS)


def test_the_order_of_json_keys_does_not_change_the_cache_key() -> None:
    messages = ({"role": "user", "content": "a"}, {"content": "a", "role": "user"})
    first, second = (CompletionRequest(model="m", messages=[message]) for message in messages)
    assert cache_key("realtime", first) == cache_key("realtime", second)


def test_tenant_lane_and_tags_change_the_cache_key() -> None:
    plain = EmbeddingRequest(model="m", input="a")
    tagged, foreign = (
        EmbeddingRequest(model="m", input="a", **fields)
        for fields in ({"tags": ["eu"]}, {"tenant_id": "t"})
    )
    keys = {cache_key("realtime", request) for request in (plain, tagged, foreign)}
    assert len({*keys, cache_key("local", plain)}) == 4


#: For each field that goes to the provider, a value other than its default.
PARAMETERS: dict[type[Request], dict[str, Any]] = {
    CompletionRequest: {
        "model": "other",
        "messages": [{"role": "user", "content": "Say goodbye."}],
        **parameters.CHAT,
        "extra_body": {"top_k": 5},
        "extra_headers": {"x-beta": "1"},
    },
    EmbeddingRequest: {
        "model": "other",
        "input": "Goodbye",
        **parameters.EMBEDDING,
        "extra_body": {"input_type": "query"},
        "extra_headers": {"x-beta": "1"},
    },
}
#: Values for the fleet's own fields, which the provider does not see.
FLEET_FIELDS: dict[str, Any] = {
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
def test_only_fields_for_the_provider_change_the_cache_key(
    plain: Request,
) -> None:
    provider_fields, fleet_fields = PARAMETERS[type(plain)], FLEET_FIELDS.items()
    needs_max_tokens = {"max_cost", "max_cost_nanousd"}
    other_names = {*FLEET_FIELDS, "tenant_id", *needs_max_tokens}
    assert provider_fields.keys() | other_names == type(plain).model_fields.keys()

    def key_with(name: str, value: Any) -> str:
        return cache_key("realtime", type(plain)(**plain.to_wire() | {name: value}))

    plain_key = cache_key("realtime", plain)
    assert {key_with(*field) for field in fleet_fields} == {plain_key}
    other_keys = set(map(key_with, provider_fields, provider_fields.values()))
    assert len({plain_key, *other_keys}) == 1 + len(provider_fields)


@pytest.mark.parametrize(
    ("reason", "complete"),
    [
        ("stop", True),
        ("length", True),
        ("tool_calls", True),
        ("content_filter", False),
        (None, False),
    ],
)
def test_only_complete_answers_are_cached(reason: str | None, complete: bool) -> None:
    body = {"choices": [{"finish_reason": "stop"}, {"finish_reason": reason}]}
    assert form_of(body).is_complete(body) is complete
