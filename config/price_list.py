"""The list of models and prices in the LiteLLM package, read without importing LiteLLM.

https://docs.litellm.ai/docs/provider_registration/add_model_pricing describes the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from primarch_fleet.errors import ConfigError

_FILE_NAME = "model_prices_and_context_window_backup.json"

#: One model of the list.
Entry = Mapping[str, Any]

#: Providers that serve other providers' models under the others' names, at their prices.
GATEWAYS = frozenset({"github", "litellm_proxy", "nadir", "openrouter"})
#: Providers whose models run on own hardware: no token has a price.
OWN_HARDWARE = frozenset(
    {
        "docker_model_runner",
        "hosted_vllm",
        "lemonade",
        "llamafile",
        "lm_studio",
        "ollama",
        "ollama_chat",
        "vllm",
        "xinference",
    }
)

_BEDROCK_ROUTES = re.compile(
    r"^(?:(?:bedrock|chat_completions|converse|invoke|openai|mantle|nova-2|nova)/)+"
)
_BEDROCK_REGION_PATH = re.compile(r"^[a-z]{2}(?:-gov)?-[a-z]+-\d/")
_BEDROCK_REGION_PREFIX = re.compile(r"^(?:global|us-gov|us|eu|apac|jp|au)\.")
_BEDROCK_SUFFIX = re.compile(r"(?:(?<=:\d):\d+k|\[\w+\])$")
#: Before the name of a model that LiteLLM shall call by the Responses API, and the providers that
#: have it: https://docs.litellm.ai/docs/response_api
RESPONSES_ROUTE = "responses/"
RESPONSES_PROVIDERS = frozenset({"azure", "openai"})
#: What a provider appends to a model's name without a change of its price.
_SUFFIXES = {
    "vertex_ai": re.compile(r"-\d+$"),
    "gemini": re.compile(r"-\d+$"),
    "databricks": re.compile(r"-\d+$"),
}
_DATE_SUFFIX = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_FINE_TUNE_SUFFIX = re.compile(r"(?::[^:]*){3}$")


@cache
def price_list() -> dict[str, Entry]:
    """Read the list, once in a process: 3 MB in 9 ms.

    Raises:
        ConfigError: The package or its list is missing.
    """
    spec = find_spec("litellm")
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        path = Path(folder) / _FILE_NAME
        if path.is_file():
            entries: dict[str, Entry] = from_json(path.read_bytes(), cache_strings="keys")
            return {name: entry for name, entry in entries.items() if "litellm_provider" in entry}
    raise ConfigError(
        f"the price list {_FILE_NAME} of the package litellm is missing: install litellm, "
        "or give each deployment a price"
    )


@cache
def _names_by_lowercase() -> dict[str, str]:
    return {name.lower(): name for name in price_list()}


def find_entry(
    provider: str, model: str, *, base_model: str | None = None, region: str | None = None
) -> Entry | None:
    """Find a deployment's model in the list, in the order in which LiteLLM looks for it.

    Args:
        provider: LiteLLM's name of the provider.
        model: The provider's name of the model, or the one of LiteLLM's `model` after the provider.
        base_model: The name of the model in the list, where `model` is a name of your choice.
        region: The provider's region; it has prices of its own for some models.

    Returns:
        The first entry that is of the provider; None if there is none.
    """
    names = _names_by_lowercase()
    for candidate in _candidates(provider, base_model or model, region):
        name = candidate if candidate in price_list() else names.get(candidate.lower())
        if name is not None and _serves(provider, price_list()[name]["litellm_provider"]):
            return price_list()[name]
    return None


def _candidates(provider: str, model: str, region: str | None) -> Iterator[str]:
    """Names that the model may have in the list, the most exact first."""
    bare = model.removeprefix(f"{provider}/")
    if region:
        yield f"{provider}/{region}/{bare}"
    yield f"{provider}/{bare}"
    yield bare
    for name in _plainer_names(provider, bare):
        yield f"{provider}/{name}"
        yield name
    yield f"{provider}/{provider}/{bare}"


def _plainer_names(provider: str, model: str) -> Iterator[str]:
    """A model's name without what does not change its price."""
    plain = model
    if provider.startswith("bedrock"):
        plain = _BEDROCK_ROUTES.sub("", model)
        if plain.startswith("arn:"):
            plain = plain.rsplit("/", 1)[-1]
        yield plain
        plain = _BEDROCK_REGION_PATH.sub("", plain)
        yield plain
        plain = _BEDROCK_REGION_PREFIX.sub("", _BEDROCK_SUFFIX.sub("", plain))
        yield plain
    elif provider in RESPONSES_PROVIDERS:
        plain = model.removeprefix(RESPONSES_ROUTE)
        yield plain
    elif provider == "fireworks_ai":
        yield f"accounts/fireworks/models/{model}"
    elif provider == "vertex_ai":
        yield f"meta/{model}"
        yield f"{model}@latest"
    elif provider in GATEWAYS:
        plain = model.split("/", 1)[-1]
        yield plain
        yield plain.replace(".", "-")
    if plain.startswith("ft:"):
        yield _FINE_TUNE_SUFFIX.sub("", plain)
    yield _SUFFIXES.get(provider, _DATE_SUFFIX).sub("", plain)


def _serves(provider: str, listed: str) -> bool:
    """Whether an entry's provider is one of the deployment's."""
    family = "bedrock" if provider.startswith("bedrock") else provider
    return (
        listed == provider
        or provider in GATEWAYS
        or (family in {"bedrock", "fireworks_ai", "vertex_ai"} and listed.startswith(family))
        or (provider == "azure_ai" and listed in {"azure", "openai"})
    )
