"""What the worker has LiteLLM do is the same for each provider that LiteLLM has."""

from __future__ import annotations

import pytest
from litellm.types.utils import CallTypes

from config.litellm_params import known_names
from tests.support.local_litellm import local_stub
from tests.support.provider_stub import ProviderStub
from workers.realtime.dropped_parameters import NEED_TOKENS, dropped_parameters

__all__ = ["local_stub"]  # a fixture
PROVIDERS = sorted(name for name in known_names("providers") if not name.startswith(NEED_TOKENS))


@pytest.mark.parametrize("call_type", [CallTypes.completion, CallTypes.embedding])
def test_a_check_of_parameters_sends_nothing(stub: ProviderStub, call_type: CallTypes) -> None:
    stub.calls.clear()
    for name in PROVIDERS:
        call = {"model": f"{name}/m", "api_base": f"{stub.url}/v1", "top_k": 5}
        dropped_parameters(call_type, call, ["top_k"])
    assert [call.path for call in stub.calls] == []
