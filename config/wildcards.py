"""Entries of a LiteLLM proxy's `model_list` that stand for many models: `openai/*`.

The fleet publishes each model with its price, so that an entry becomes one for each model of
LiteLLM's price list that it stands for. https://docs.litellm.ai/docs/wildcard_routing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from config.inline_accounts import LISTED_PROVIDERS, split_model
from config.listed_models import find_listed, kind_of, listing
from config.price_list import price_list
from config.section import Values
from primarch_fleet.contract import ModelKind

STAR = "*"


def expanded(entries: list[Any], aliases: Iterable[str] = ()) -> list[tuple[int, Any]]:
    """Return the entries with their places in the list, each with one model.

    A model with an entry of its own gets none from a wildcard, nor does the name of an alias.

    Raises:
        ValueError: The price list cannot say what an entry stands for; the error names it.
    """
    own = {one.get("model_name") for one in entries if isinstance(one, dict)}.union(aliases)
    result: list[tuple[int, Any]] = []
    for index, entry in enumerate(entries):
        if not _is_wildcard(entry):
            result.append((index, entry))
            continue
        try:
            single = _models(entry)
        except ValueError as error:
            raise ValueError(f"model_list.{index}.{error}") from None
        result += [(index, one) for one in single if one["model_name"] not in own]
    return result


def _is_wildcard(entry: Any) -> bool:
    return isinstance(entry, dict) and STAR in str(entry.get("model_name"))


def _models(entry: Values) -> list[Values]:
    """One entry for each model of the price list that a wildcard stands for."""
    params = entry.get("litellm_params")
    model = str(params.get("model")) if isinstance(params, dict) else ""
    name = entry["model_name"]
    if not isinstance(params, dict) or STAR in model.partition("/")[0] or name == model == STAR:
        raise ValueError(_unknown(name))
    if STAR not in model:
        models = [{**entry, "model_name": one} for one in _names_like(name)]
    else:
        models = [
            {
                **entry,
                "model_name": _filled(name, parts),
                "litellm_params": {**params, "model": f"{provider}/{upstream}"},
            }
            for provider, upstream, parts in _upstreams(model, params)
        ]
    if not models:
        raise ValueError(
            f"model_name: {name}: the price list has no model like this; write an entry for each "
            "model"
        )
    return models


def _unknown(name: str) -> str:
    return (
        f"model_name: {name}: the price list cannot say what it stands for; write "
        f"litellm_params.model as <provider>/{STAR}, or an entry for each model"
    )


def _names_like(name: str) -> list[str]:
    """The models of the price list that producers may ask for, where one model answers for all.

    Raises:
        ValueError: The name is a star alone, which any text matches.
    """
    if not name.strip(f"{STAR}/"):
        raise ValueError(_unknown(name))
    matching = _pattern(name)
    return [
        model
        for model, entry in price_list().items()
        if matching.fullmatch(model) and kind_of(entry) in get_args(ModelKind)
    ]


def _upstreams(model: str, params: Values) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The provider, its name of each model that matches, and the parts in place of the stars."""
    provider, pattern = split_model(model, params.get("custom_llm_provider"))
    matching = _pattern(pattern)
    for upstream in _listed(provider):
        if match := matching.fullmatch(upstream):
            yield provider, upstream, match.groups()


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(STAR), "(.*)"))


def _filled(pattern: str, parts: tuple[str, ...]) -> str:
    """A pattern with the parts in place of its stars."""
    for part in parts:
        pattern = pattern.replace(STAR, part, 1)
    return pattern


def _listed(provider: str) -> Iterator[str]:
    """The provider's names of its models that have a price, without those for one region."""
    for name, entry in price_list().items():
        listed = entry["litellm_provider"]
        if provider not in (listed, LISTED_PROVIDERS.get(listed)) or name.startswith("ft:"):
            continue
        bare = name.removeprefix(f"{provider}/")
        is_regional = provider == "bedrock" and "/" in bare
        if is_regional or kind_of(entry) not in get_args(ModelKind):
            continue
        if listing(provider, find_listed(provider, bare, info={}), {}).rates is not None:
            yield bare
