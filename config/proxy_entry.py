"""What the price list knows of one entry of a LiteLLM proxy's `model_list`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from config.inline_accounts import split_model
from config.listed_models import find_listed, listing
from config.litellm_params import is_price
from config.price_list import Entry
from config.references import text_of
from config.section import Values

#: Providers that stand for any server with some API.
ANY_SERVER = frozenset(
    {
        *("custom_openai", "openai", "openai_like", "text-completion-openai"),
        *("huggingface", "infinity", "oobabooga", "triton", "xinference"),
    }
)
#: Endings of names that no public address has.
PRIVATE_ENDINGS = (".internal", ".local", ".localhost", ".lan", ".svc", ".home.arpa")
#: Prices of a server of one's own, as in `model_info`.
FREE = {"input_cost_per_token": 0, "output_cost_per_token": 0}


class InlineEntry(NamedTuple):
    """An entry as the price list sees it."""

    listed: Entry | None
    #: No price is known, and the address is private.
    is_own_server: bool


def inline_entry(deployment: Values) -> InlineEntry:
    """Return what is known of a deployment with LiteLLM's `model` among its parameters.

    Raises:
        ValueError: The provider of the model cannot be told.
    """
    params = deployment["litellm_params"]
    prices = {name: value for name, value in params.items() if is_price(name)}
    info = {**deployment["model_info"], **prices}
    model = str(params.get("model") or "")
    provider, upstream = split_model(model, params.get("custom_llm_provider"))
    listed = find_listed(provider, upstream, params, info=info)
    unpriced = not prices and listing(provider, listed, info).rates is None
    private = provider in ANY_SERVER and _is_private(text_of(params.get("api_base")))
    return InlineEntry(listed, unpriced and private)


def _is_private(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(PRIVATE_ENDINGS))
