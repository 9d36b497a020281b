"""LiteLLM finds the keys of providers where `config` says, and no provider gets another's key."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import litellm
import pytest

from config.key_variables import KEY_VARIABLES, OTHER_VARIABLES
from config.litellm_params import known_names
from tests.support.local_litellm import local_stub
from tests.support.provider_stub import ProviderStub

__all__ = ["local_stub"]  # a fixture
KEY = "sk-sample"
CALLS: dict[str, dict[str, Any]] = {
    "completion": {"messages": [{"role": "user", "content": "x"}]},
    "embedding": {"input": ["x"]},
}


#: Providers whose variable LiteLLM reads for their own address only.
ONLY_AT_THEIR_ADDRESS = {"inception"}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {name for names in OTHER_VARIABLES.values() for name in names}
    for name in list(os.environ):
        if name.endswith(("_KEY", "_TOKEN")) or name in other:
            monkeypatch.delenv(name)


def gets_key(stub: ProviderStub, provider: str) -> bool:
    """Whether LiteLLM sends KEY to a provider whose account has none."""
    stub.calls.clear()
    options = {"api_base": f"{stub.url}/v1", "api_version": "2025-04-01-preview"}
    for name, call in CALLS.items():
        with suppress(Exception):  # what was sent counts
            getattr(litellm, name)(f"{provider}/m", **call, **options, max_retries=0, timeout=5)
    return any(KEY in value for call in stub.calls for value in call.headers.values())


def test_openai_s_key_goes_to_no_other_provider_whose_account_needs_no_key(
    stub: ProviderStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    others = known_names("providers") - KEY_VARIABLES.keys()
    assert [name for name in sorted(others) if gets_key(stub, name)] == []


def test_every_variable_of_a_key_is_read_by_litellm(
    stub: ProviderStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = []
    for provider in KEY_VARIABLES.keys() - ONLY_AT_THEIR_ADDRESS:
        for name in KEY_VARIABLES[provider]:
            with monkeypatch.context() as environment:
                environment.setenv(name, KEY)
                if not gets_key(stub, provider):
                    unread.append(f"{provider}: {name}")
    assert unread == []
    assert KEY_VARIABLES.keys() <= known_names("providers")
