"""The parameters of OpenAI's API that LiteLLM refuses for all models of a provider.

Producers get the error at submit. What LiteLLM refuses for some models only, or drops without a
word, the realtime worker finds by LiteLLM itself. `tests/contract/test_provider_parameters.py`
compares the table with LiteLLM.
"""

from __future__ import annotations

from config.provider import Deployment, Provider

_EVERYWHERE = {
    *("function_call", "logit_bias", "metadata", "prediction", "prompt_cache_key"),
    *("prompt_cache_retention", "safety_identifier", "store", "top_logprobs", "verbosity"),
}
#: By LiteLLM's name of the provider, the names in OpenAI's body.
UNSUPPORTED: dict[str, frozenset[str]] = {
    "anthropic": frozenset(
        {
            *_EVERYWHERE,
            *("audio", "frequency_penalty", "functions", "logprobs", "modalities", "n"),
            *("presence_penalty", "seed"),
        }
    ),
    "gemini": frozenset(_EVERYWHERE),
}


def unsupported_parameters(deployment: Deployment, provider: Provider) -> frozenset[str]:
    """Return the parameters that a deployment is known to refuse."""
    settings = {**provider.litellm_params.values(), **deployment.litellm_params.values()}
    if deployment.kind != "chat" or settings.get("drop_params"):
        return frozenset()
    allowed = set(settings.get("allowed_openai_params") or ())
    return UNSUPPORTED.get(provider.litellm_provider, frozenset()) - allowed
