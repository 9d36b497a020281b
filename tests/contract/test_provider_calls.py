"""What the worker has LiteLLM do is the same for each provider that LiteLLM has."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import litellm
import pytest
from litellm.types.utils import CallTypes

from config.litellm_params import known_names
from tests.support.local_litellm import local_stub
from tests.support.provider_stub import ProviderStub
from workers.realtime.dropped_parameters import NEED_TOKENS, dropped_parameters
from workers.realtime.provider_arguments import OPENAI_SERVERS

__all__ = ["local_stub"]  # a fixture
PROVIDERS = sorted(name for name in known_names("providers") if not name.startswith(NEED_TOKENS))


@pytest.mark.parametrize("call_type", [CallTypes.completion, CallTypes.embedding])
def test_a_check_of_parameters_sends_nothing(stub: ProviderStub, call_type: CallTypes) -> None:
    stub.calls.clear()
    for name in PROVIDERS:
        call = {"model": f"{name}/m", "api_base": f"{stub.url}/v1", "top_k": 5}
        dropped_parameters(call_type, call, ["top_k"])
    assert [call.path for call in stub.calls] == []


def test_litellm_gives_a_field_extra_body_only_to_servers_that_are_called_as_openai(
    stub: ProviderStub,
) -> None:
    account = {"api_base": f"{stub.url}/v1", "api_key": "k", "api_version": "2025-04-01-preview"}
    call: Any = litellm.embedding
    found = set()
    for name in PROVIDERS:
        stub.calls.clear()
        with suppress(Exception):  # what was sent counts
            call(f"{name}/m", ["x"], **account, top_k=5, max_retries=0, timeout=5)
        if any("extra_body" in one.body for one in stub.calls):
            found.add(name)
    assert found == OPENAI_SERVERS
