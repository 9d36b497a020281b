"""Keys of providers that LiteLLM finds in the environment by itself."""

from __future__ import annotations

import os
import re

from config.litellm_params import SECRET
from config.section import Values

#: Providers that need a key: the variables of the environment in which LiteLLM finds one itself.
KEY_VARIABLES = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "fireworks_ai": (
        "FIREWORKS_API_KEY",
        "FIREWORKS_AI_API_KEY",
        "FIREWORKSAI_API_KEY",
        "FIREWORKS_AI_TOKEN",
    ),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "mistral": ("MISTRAL_API_KEY", "MISTRAL_AZURE_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "together_ai": (
        "TOGETHERAI_API_KEY",
        "TOGETHER_API_KEY",
        "TOGETHER_AI_API_KEY",
        "TOGETHER_AI_TOKEN",
    ),
    "xai": ("XAI_API_KEY",),
}
#: Parameters by which LiteLLM gets a key or a token, besides the secrets.
_OTHER_AUTHENTICATION = re.compile(
    r"anthropic_|openai_(identity|service)|token_exchange|use_xai_oauth|litellm_credential_name"
)


def needs_key_variable(provider: str, params: Values) -> tuple[str, ...]:
    """Return the variables that may hold the key; none if a parameter authenticates.

    Args:
        provider: LiteLLM's name of the provider.
        params: All parameters of a deployment and its account.
    """
    names = SECRET.union(filter(_OTHER_AUTHENTICATION.match, params)) & params.keys()
    return () if names else KEY_VARIABLES.get(provider, ())


def environment_key(provider: str) -> str | None:
    """Return the key of a provider that LiteLLM finds in the environment by itself."""
    variables = KEY_VARIABLES.get(provider, ())
    return next((value for name in variables if (value := os.environ.get(name))), None)
