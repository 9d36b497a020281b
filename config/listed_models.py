"""What the price list knows of the deployments in fleet.yaml."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, get_args

from config.listed_rates import listed_rates
from config.price import DEFAULT_DISCOUNT
from config.price_list import OWN_HARDWARE, Entry, find_entry
from config.provider import Deployment, Provider
from config.references import text_of
from config.section import Values
from primarch_fleet.contract import ModelKind
from primarch_fleet.prices import Rates

#: The kind of a model by the `mode` of its entry.
_KINDS = {"completion": "chat"}
#: The list's names of what a deployment may leave out.
_LIMITS = {"max_output_tokens": "max_output_tokens", "context_length": "max_input_tokens"}
#: Providers whose bill follows rules beside the list, so that LiteLLM's own figure of an answer
#: counts: they report the cost themselves.
_OWN_BILL = frozenset({"openrouter", "perplexity", "vercel_ai_gateway", "xai"})
#: Prices that depend on more than an answer's tokens.
_OWN_RULES = ("off_peak_pricing", "input_cost_per_second", "output_cost_per_second")
#: Modes whose models are free if the list says so.
_FREE_MODES = frozenset({"moderation"})
#: OpenAI's hosts that process in one region.
_OPENAI_REGION = re.compile(r"https://(\w+)\.api\.openai\.com")
#: LiteLLM's own parameters that name a region, by which the list has prices of its own.
_REGIONS = ("aws_region_name", "vertex_location", "region_name")


#: What an own price of prompts or answers replaces in the list: the beginnings of names.
_SIDES = {
    "input_cost_per_token": ("input_cost", "cache_", "tiered_pricing"),
    "output_cost_per_token": ("output_cost", "tiered_pricing"),
}


class Listing(NamedTuple):
    """What the list says of a deployment's price."""

    #: None if it says nothing, or a price of 0: that of some models is only unknown.
    rates: Rates | None
    #: True if LiteLLM's own figure of an answer's cost is the provider's bill.
    own_bill: bool


def with_listed_models(file: Values) -> Values:
    """Return fleet.yaml's values with what the price list says of a deployment that leaves it out.

    That is its kind, and the lengths of its prompts and answers.
    """
    providers = file.get("providers")
    if not isinstance(providers, dict) or not isinstance(file.get("deployments"), list):
        return file
    deployments = [
        {**_listed_keys(deployment, providers), **deployment}
        if isinstance(deployment, dict)
        else deployment
        for deployment in file["deployments"]
    ]
    return {**file, "deployments": deployments}


def _listed_keys(deployment: Values, providers: Values) -> Values:
    provider = providers.get(str(deployment.get("provider")))
    if not isinstance(provider, dict) or not isinstance(deployment.get("upstream"), str):
        return {}
    params = deployment.get("litellm_params") or deployment.get("params")
    entry = find_listed(
        str(provider.get("litellm_provider")),
        deployment["upstream"],
        *(value for value in (provider.get("litellm_params"), params) if isinstance(value, dict)),
        info=info if isinstance(info := deployment.get("model_info"), dict) else {},
    )
    if entry is None:
        return {}
    kind = kind_of(entry)
    keys = {ours: entry[theirs] for ours, theirs in _LIMITS.items() if entry.get(theirs)}
    return {**keys, "kind": kind} if kind in get_args(ModelKind) else keys


def kind_of(entry: Entry) -> str | None:
    """Return what the model of an entry does; it may be what the fleet does not serve."""
    mode = entry.get("mode")
    return _KINDS.get(mode, mode) if isinstance(mode, str) else None


def find_listed(
    provider: str, upstream: str, *params: Mapping[str, Any], info: Mapping[str, Any]
) -> Entry | None:
    """Return the list's entry of a deployment.

    What `model_info` says overrides the list: prices, the mode, lengths.

    Args:
        provider: LiteLLM's name of the provider.
        upstream: The provider's name of the model.
        params: LiteLLM's parameters of the account and of the deployment.
        info: LiteLLM's `model_info` of the deployment.
    """
    values = dict(ChainMap(*map(dict, reversed(params))))
    base_models = [info.get("base_model"), values.get("base_model")]
    entry = find_entry(
        provider,
        upstream,
        base_model=_first_text(base_models),
        region=_first_text(text_of(values.get(name)) for name in _REGIONS),
    )
    return _with_own(entry, provider, info)


def _first_text(values: Iterable[Any]) -> str | None:
    """The first text; the check of the file refuses values that must be texts and are none."""
    return next((value for value in values if value and isinstance(value, str)), None)


def _with_own(entry: Entry | None, provider: str, info: Mapping[str, Any]) -> Entry | None:
    """An entry with what `model_info` says in place.

    A price of its own for tokens of a side, prompt or answer, holds for all tokens of that side.
    """
    if not info:
        return entry
    replaced = tuple(start for name in _SIDES.keys() & info.keys() for start in _SIDES[name])
    kept = {name: value for name, value in (entry or {}).items() if not name.startswith(replaced)}
    return {"litellm_provider": provider, **kept, **info}


def listing_of(provider: Provider, deployment: Deployment) -> Listing:
    """Return what the list, and the deployment's `model_info`, say of its price."""
    name, info = provider.litellm_provider, deployment.model_info
    params = provider.litellm_params.values() | deployment.litellm_params.values()
    entry = find_listed(name, deployment.upstream, params, info=info)
    found = listing(name, entry, info)
    if not entry or not found.rates:
        return found
    return found._replace(rates=found.rates.scaled(_region_factor(entry, params, provider)))


def listing(provider: str, entry: Entry | None, info: Mapping[str, Any]) -> Listing:
    """Return what the list says of a model's price.

    Args:
        provider: LiteLLM's name of the provider.
        entry: The model's entry of the list, if it has one.
        info: LiteLLM's `model_info` of the deployment: its own prices may be 0.
    """
    rates = listed_rates(entry, DEFAULT_DISCOUNT) if entry else None
    if rates and info.keys() & _SIDES.keys():
        return Listing(rates, own_bill=False)
    if provider in OWN_HARDWARE:
        return Listing(Rates(input=0), own_bill=False)
    if rates and entry and rates.is_zero and entry.get("mode") not in _FREE_MODES:
        rates = None
    own_rules = entry is not None and any(entry.get(key) for key in _OWN_RULES)
    return Listing(rates, own_bill=own_rules or provider in _OWN_BILL)


def _region_factor(entry: Entry, params: Mapping[str, Any], provider: Provider) -> Decimal:
    """What the region of a deployment multiplies all prices of tokens by."""
    # https://cloud.google.com/vertex-ai/generative-ai/pricing: all but the global endpoint.
    if text_of(params.get("vertex_location", "global")) != "global":
        factor = entry.get("regional_endpoint_uplift_multiplier")
    else:
        # https://platform.openai.com/docs/guides/your-data: the host names the region.
        match = _OPENAI_REGION.match(text_of(params.get("api_base") or provider.api_base))
        factor = match and entry.get(f"regional_processing_uplift_multiplier_{match[1]}")
    return Decimal(str(factor or 1))
