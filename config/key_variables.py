"""Keys of providers that LiteLLM finds in the environment by itself."""

from __future__ import annotations

import os
import re

from config.litellm_params import SECRET
from config.section import Values
from primarch_fleet.contract import ModelKind

#: Providers whose variable is their name, followed by `_API_KEY`.
_REGULAR = (
    *("abliteration", "aiand", "aihubmix", "aiml", "assemblyai", "baseten", "cerebras"),
    *("charity_engine", "chutes", "clf_ai_gateway", "codestral", "cognition", "coralbricks"),
    *("cortecs", "crusoe", "darkbloom", "dashscope", "deepinfra", "deepseek", "empiriolabs"),
    *("empower", "galadriel", "github", "gmi", "groq", "helicone", "hostinger_router"),
    *("hyperbolic", "inception", "inferenceapis", "kyma", "libertai", "llamagate", "meta"),
    *("modelscope", "moonshot", "morph", "nebius", "neosantara", "novita", "nscale"),
    *("nvidia_nim", "openai", "openinfer", "parasail", "pinstripes", "poe", "prism", "publicai"),
    *("refuseless", "reka", "sail", "sambanova", "sarvam", "streamlake", "synthetic", "tencent"),
    *("v0", "wandb", "xai", "xiaomi_mimo", "zai", "zerogpu"),
)
#: Providers that need a key: the variables of the environment in which LiteLLM finds one itself, if
#: any. To most of the others LiteLLM would send OPENAI_API_KEY in place of a key that is missing.
#: Azure is not among them: a machine's identity can do, which no variable shows.
KEY_VARIABLES: dict[str, tuple[str, ...]] = {
    **{name: (f"{name.upper()}_API_KEY",) for name in _REGULAR},
    "ai21": (),
    "ai21_chat": ("AI21_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "apertis": ("STIMA_API_KEY",),
    "azure_ai": ("AZURE_AI_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "custom_openai": ("OPENAI_API_KEY",),
    "featherless_ai": ("FEATHERLESS_AI_API_KEY", "FEATHERLESS_API_KEY"),
    "fireworks_ai": (
        "FIREWORKS_API_KEY",
        "FIREWORKS_AI_API_KEY",
        "FIREWORKSAI_API_KEY",
        "FIREWORKS_AI_TOKEN",
    ),
    "friendliai": ("FRIENDLIAI_API_KEY", "FRIENDLI_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "lambda_ai": ("LAMBDA_API_KEY",),
    "litellm_proxy": ("LITELLM_PROXY_API_KEY",),
    "meta_llama": ("LLAMA_API_KEY",),
    "mistral": ("MISTRAL_API_KEY", "MISTRAL_AZURE_API_KEY"),
    "nano-gpt": ("NANOGPT_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "qwen_ai_platform": ("QWEN_AI_PLATFORM_API_KEY", "DASHSCOPE_API_KEY"),
    "qwencloud": ("QWENCLOUD_API_KEY", "DASHSCOPE_API_KEY"),
    "scaleway": ("SCW_SECRET_KEY",),
    "scx-ai": ("SCX_API_KEY",),
    "tensormesh": ("TENSORMESH_INFERENCE_API_KEY",),
    "text-completion-inception": (),
    "text-completion-openai": ("OPENAI_API_KEY",),
    "together_ai": (
        "TOGETHERAI_API_KEY",
        "TOGETHER_API_KEY",
        "TOGETHER_AI_API_KEY",
        "TOGETHER_AI_TOKEN",
    ),
    "veniceai": ("VENICE_AI_API_KEY",),
    "vercel_ai_gateway": ("VERCEL_AI_GATEWAY_API_KEY", "VERCEL_OIDC_TOKEN"),
    "volcengine": ("VOLCENGINE_API_KEY", "ARK_API_KEY"),
    "xinference": (),
}
#: Variables by which LiteLLM authenticates without a key of the provider's own.
OTHER_VARIABLES = {
    "azure_ai": (
        *("AZURE_API_KEY", "AZURE_AD_TOKEN", "AZURE_OPENAI_AD_TOKEN", "AZURE_CLIENT_ID"),
        *("AZURE_CREDENTIAL", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CERTIFICATE_PATH"),
    )
}
#: Kinds of models for which LiteLLM makes up a key.
KEYLESS: set[tuple[str, ModelKind]] = {("xinference", "embedding")}
#: Parameters by which LiteLLM gets a key or a token, besides the secrets.
_OTHER_AUTHENTICATION = re.compile(
    r"anthropic_|openai_(identity|service)|token_exchange|use_xai_oauth|litellm_credential_name"
)


def missing_key(provider: str, params: Values, kind: ModelKind) -> str | None:
    """Return what would hold the key that an account lacks; None if it lacks none.

    Args:
        provider: LiteLLM's name of the provider.
        params: All parameters of a deployment and its account.
        kind: The kind of the deployment's model.

    Returns:
        A variable of the environment, or `api_key` if LiteLLM reads none.
    """
    if provider not in KEY_VARIABLES or (provider, kind) in KEYLESS:
        return None
    if SECRET.union(filter(_OTHER_AUTHENTICATION.match, params)) & params.keys():
        return None
    variables = KEY_VARIABLES[provider]
    if any(map(os.environ.get, (*variables, *OTHER_VARIABLES.get(provider, ())))):
        return None
    return next(iter(variables), "api_key")


def environment_key(provider: str) -> str | None:
    """Return the key of a provider that LiteLLM finds in the environment by itself."""
    variables = KEY_VARIABLES.get(provider, ())
    return next((value for name in variables if (value := os.environ.get(name))), None)
