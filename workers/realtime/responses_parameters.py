"""Which parameters of the Responses API LiteLLM hands on to a provider.

Providers that have the API get the request as it is. For the others LiteLLM translates the request
into a chat, and leaves out what a chat does not have without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, wraps
from typing import Any

from litellm.llms.base_llm.responses.transformation import BaseResponsesAPIConfig
from litellm.responses.litellm_completion_transformation.transformation import (
    LiteLLMCompletionResponsesConfig,
)
from litellm.types.llms.openai import ResponsesAPIRequestParams
from litellm.utils import ProviderConfigManager

from config.price_list import find_entry

#: What LiteLLM's function for responses has an argument for. It leaves out everything else.
ARGUMENTS = frozenset(ResponsesAPIRequestParams.__annotations__)
#: Parameters that LiteLLM refuses for models that are not in its list.
REFUSED_FOR_UNKNOWN_MODELS = frozenset({"reasoning"})
#: Parameters that LiteLLM's translation has only with the database of its proxy server.
NEEDS_DATABASE = frozenset({"previous_response_id"})


def omit_missing_inputs() -> None:
    """Have LiteLLM send no `input` for a request without one; calling this again changes nothing.

    A request that names a stored prompt or conversation may have none. LiteLLM would send null.
    """
    config: Any = BaseResponsesAPIConfig
    normalize = config.normalize_responses_api_request_dict
    if hasattr(normalize, "__wrapped__"):
        return

    @wraps(normalize)
    def without_null(data: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = normalize(data)
        if body.get("input", "") is None:
            del body["input"]
        return body

    config.normalize_responses_api_request_dict = staticmethod(without_null)


@cache
def has_responses(provider: str, model: str) -> bool:
    """Return whether LiteLLM calls a provider's own Responses API for a model."""
    return ProviderConfigManager.get_provider_responses_api_config(provider, model) is not None


def dropped(provider: str, model: str, names: Iterable[str]) -> frozenset[str]:
    """Return those of a request's parameters that LiteLLM would leave out or refuse.

    Args:
        provider: LiteLLM's name of the provider.
        model: The provider's name of the model.
        names: The parameters that the request has.
    """
    return frozenset(names) - _handed_on(provider, model)


@cache
def _handed_on(provider: str, model: str) -> frozenset[str]:
    if not has_responses(provider, model):
        supported = LiteLLMCompletionResponsesConfig.get_supported_openai_params(model)
        return frozenset(supported) - NEEDS_DATABASE
    name = model.removeprefix(f"{provider}/")
    return ARGUMENTS if find_entry(provider, name) else ARGUMENTS - REFUSED_FOR_UNKNOWN_MODELS
