"""What providers and engines learn of tenants and end users."""

from __future__ import annotations

from typing import Any

import pytest

from config.requests import RequestPolicy
from primarch_fleet import CompletionRequest, EmbeddingRequest
from tasks.privacy import ENGINE, Privacy

HASHED = Privacy(RequestPolicy(), b"key")
MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"model": "m", "messages": MESSAGES, "user_id": "ann", **fields})


def fields(request: Any, provider: str, **policy: Any) -> dict[str, Any]:
    return Privacy(RequestPolicy(**policy), b"key").fields(request, provider)


def test_the_hash_of_an_end_user_depends_on_the_key_the_tenant_and_the_user() -> None:
    hashes = {
        HASHED.fields(chat(), "openai")["safety_identifier"],
        HASHED.fields(chat(user_id="bob"), "openai")["safety_identifier"],
        HASHED.fields(chat(tenant_id="other"), "openai")["safety_identifier"],
        Privacy(RequestPolicy(), b"other").fields(chat(), "openai")["safety_identifier"],
    }
    assert len(hashes) == 4
    assert all(len(text) == 64 and "ann" not in text for text in hashes)
    assert HASHED.fields(chat(), "openai") == HASHED.fields(chat(seed=1), "openai")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "b\0c"), ("a\0b", "c")),
        (("a\0", "b"), ("a", "\0b")),
        (("a\1", "b"), ("a", "\1b")),
        (("a\1\2", "b"), ("a\0", "b")),
    ],
)
def test_names_that_join_to_the_same_text_have_different_hashes(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    users = [
        HASHED.fields(chat(tenant_id=tenant, user_id=user), "openai")
        for tenant, user in (first, second)
    ]
    salts = [
        HASHED.fields(chat(tenant_id=tenant, extra_body={"cache_salt": own}), ENGINE)
        for tenant, own in (first, second)
    ]
    assert users[0] != users[1]
    assert salts[0] != salts[1]


@pytest.mark.parametrize(
    ("provider", "field"),
    [("openai", "safety_identifier"), ("azure", "user"), ("anthropic", "user")],
)
def test_each_provider_gets_the_end_user_in_its_own_field(provider: str, field: str) -> None:
    assert fields(chat(), provider, user_id="plain") == {field: "ann"}


@pytest.mark.parametrize("provider", ["gemini", "bedrock", "mistral"])
def test_a_provider_without_a_field_for_end_users_gets_none(provider: str) -> None:
    assert fields(chat(), provider, user_id="plain") == {}


def test_embeddings_have_the_field_user() -> None:
    request = EmbeddingRequest(model="m", input="x", user_id="ann")
    assert fields(request, "openai", user_id="plain") == {"user": "ann"}


def test_nothing_is_added_without_a_user_or_where_the_request_has_its_own() -> None:
    assert fields(chat(user_id=None), "openai") == {}
    assert fields(chat(user="own"), "openai") == {}
    assert fields(chat(), "openai", user_id="omitted") == {}


def test_an_engine_gets_a_salt_for_each_tenant_and_no_end_user() -> None:
    a, b = (HASHED.fields(chat(tenant_id=name), ENGINE) for name in ("a", "b"))
    assert a.keys() == b.keys() == {"cache_salt"}
    assert a != b
    assert a == HASHED.fields(chat(tenant_id="a", user_id="bob"), ENGINE)


def test_tenants_that_share_have_no_salt_but_their_own() -> None:
    shared: dict[str, Any] = {"share_prefix_cache": True}
    own = {"extra_body": {"cache_salt": "mine"}}
    assert fields(chat(), ENGINE, **shared) == {}
    assert fields(chat(**own), ENGINE, **shared) == fields(
        chat(**own, tenant_id="b"), ENGINE, **shared
    )
    assert fields(chat(**own), ENGINE) != fields(chat(), ENGINE)


@pytest.mark.parametrize(
    "header", ["Authorization", "X-Api-Key", "api-key", "Cookie", "host", "x-goog-api-key", "a b"]
)
def test_a_header_with_credentials_cannot_be_allowed(header: str) -> None:
    with pytest.raises(ValueError, match="extra_headers"):
        RequestPolicy.model_validate({"extra_headers": [header]})
    assert RequestPolicy(extra_headers=("Anthropic-Beta",)).extra_headers == ("anthropic-beta",)
