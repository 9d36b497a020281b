"""Deployments that define their account themselves, by LiteLLM's `model` and its parameters."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from config.litellm_params import is_price, known_names
from config.price_list import price_list
from config.references import with_values
from config.section import Values

#: Between the provider's name and the account's mark, in the name of an inline account.
MARK = "#"
#: Parameters of the account rather than of the deployment, besides LiteLLM's own list.
ACCOUNT_PARAMS = frozenset({"extra_headers", "headers", "organization", "ssl_verify"})
#: The price list's names of providers whose models LiteLLM knows without the provider -> its own.
LISTED_PROVIDERS = {
    "ai21": "ai21_chat",
    "anthropic": "anthropic",
    "bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "cohere": "cohere",
    "cohere_chat": "cohere_chat",
    "nlp_cloud": "nlp_cloud",
    "openai": "openai",
    "text-completion-openai": "text-completion-openai",
    "vertex_ai-embedding-models": "vertex_ai",
    "vertex_ai-language-models": "vertex_ai",
    "vertex_ai-text-models": "vertex_ai",
}


def receipt_provider(account: str) -> str:
    """Return the provider that receipts and reports show for an account."""
    return account.partition(MARK)[0]


def with_accounts(file: Values) -> Values:
    """Return fleet.yaml's values with an entry in `providers` for each inline account.

    Deployments with the same provider and the same account parameters share an account. Its name
    stays the same while those stay the same: batches are stored by it.

    Raises:
        ValueError: The provider of a model cannot be told; the error names the deployment.
    """
    if not _has_known_form(file):
        return file
    providers, deployments = dict(file.get("providers") or {}), []
    for index, written in enumerate(file.get("deployments") or ()):
        try:
            deployment = with_values(written) if isinstance(written, dict) else written
            if _is_inline(deployment):
                name, providers[name], deployment = _separate(deployment)
        except ValueError as error:
            raise ValueError(f"deployments.{index}.{error}") from None
        deployments.append(deployment)
    return {**file, "providers": providers, "deployments": deployments}


def _has_known_form(file: Values) -> bool:
    """Whether the sections are a map and a list; the check of the file names those that are not."""
    providers, deployments = file.get("providers"), file.get("deployments")
    return isinstance(providers, dict | None) and isinstance(deployments, list | None)


def _params(deployment: Values) -> Any:
    return deployment.get("litellm_params", deployment.get("params"))


def _is_inline(deployment: Any) -> bool:
    return (
        isinstance(deployment, dict)
        and "provider" not in deployment
        and isinstance(params := _params(deployment), dict)
        and isinstance(params.get("model"), str)
    )


def _separate(deployment: Values) -> tuple[str, Values, Values]:
    """Return the account's name, the account, and the deployment that refers to it."""
    params, info = dict(_params(deployment)), deployment.get("model_info") or {}
    if not isinstance(info, dict):
        raise ValueError("model: model_info must be a map")
    info = dict(info)
    provider, upstream = split_model(params.pop("model"), params.pop("custom_llm_provider", None))
    info |= {name: params.pop(name) for name in list(params) if is_price(name)}
    account_names = known_names("account_params") | ACCOUNT_PARAMS
    account = {name: params.pop(name) for name in sorted(account_names & params.keys())}
    rest = {name: deployment[name] for name in deployment if name not in ("params", "model_info")}
    entry = {
        **({"id": info.pop("id")} if "id" in info else {}),
        **rest,
        "provider": _account_name(provider, account),
        "upstream": upstream,
        "litellm_params": params,
        "model_info": info,
    }
    return entry["provider"], {"litellm_provider": provider, "litellm_params": account}, entry


def _account_name(provider: str, account: Values) -> str:
    """The provider's name, and a mark of the parameters as they are written, without secrets."""
    text = json.dumps(account, sort_keys=True, default=str)
    return f"{provider}{MARK}{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def split_model(model: str, custom_llm_provider: str | None = None) -> tuple[str, str]:
    """Return LiteLLM's name of the provider, and the provider's name of the model.

    LiteLLM finds them in the same way: `litellm.get_llm_provider`.

    Raises:
        ValueError: The name has no provider, and LiteLLM's price list does not have the model.
    """
    prefix, _, rest = model.partition("/")
    if custom_llm_provider:
        return custom_llm_provider, rest if rest and prefix == custom_llm_provider else model
    if rest and prefix in known_names("providers"):
        return prefix, rest
    if provider := _listed_provider(model):
        return provider, model
    raise ValueError(f"litellm_params.model: write the provider before it: <provider>/{model}")


def _listed_provider(model: str) -> str | None:
    """The provider of a model in LiteLLM's price list."""
    return LISTED_PROVIDERS.get(price_list().get(model, {}).get("litellm_provider", ""))
