"""What the table of unsupported parameters says, LiteLLM says too."""

import pytest

import workers.realtime  # noqa: F401 - LiteLLM's settings, before its import
from config.provider_parameters import UNSUPPORTED

#: Models of each provider that differ in what they support.
MODELS = {
    "anthropic": ["claude-3-haiku-20240307", "claude-3-7-sonnet-latest", "claude-sonnet-4-5"],
    "gemini": ["gemini-2.0-flash", "gemini-2.5-flash", "gemini-2.5-flash-preview-tts"],
}


@pytest.mark.parametrize("provider", UNSUPPORTED)
def test_litellm_refuses_the_unsupported_parameters_for_all_models(provider: str) -> None:
    from litellm import get_supported_openai_params  # noqa: PLC0415 - takes seconds

    for model in MODELS[provider]:
        supported = get_supported_openai_params(model, custom_llm_provider=provider)
        assert supported
        assert UNSUPPORTED[provider].isdisjoint(supported), model
