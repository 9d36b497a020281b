"""Rates of a model of the price list: LiteLLM's keys, each exception resolved to a rate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from config.price_list import Entry
from primarch_fleet.prices import OUTPUT_RATES, Fees, Rates, Steps, TokenRates

#: The list's names of our rates, in dollars a token.
_KEYS = {
    "input": "input_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cached_audio_input": "cache_read_input_audio_token_cost",
    "cached_image_input": "cache_read_input_image_token_cost",
    "explicit_cached_input": "explicit_cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
    "cache_write_12h": "cache_creation_input_token_cost_above_12hr",
    "audio_input": "input_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "video_input": "input_cost_per_video_token",
    "output": "output_cost_per_token",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_output": "output_cost_per_audio_token",
    "image_output": "output_cost_per_image_token",
    "video_output": "output_cost_per_video_token",
}
_TIERS = ("flex", "priority", "balanced", "ultrafast")
_BATCH = "_batches"
_STEP = re.compile(r"_above_(\d+)(k?)_tokens")
#: LiteLLM's rate of cached tokens at Fireworks where the list has none, as a share of `input`:
#: FIREWORKS_AI_DEFAULT_CACHE_READ_RATE_RATIO.
_FIREWORKS_CACHED_SHARE = Decimal("0.5")
#: A search of the web where the list has no fee for it: https://docs.x.ai/docs/models
_SEARCH_FEES = {"xai": "0.005"}
#: Significant digits of a rate: what is beyond them comes from binary fractions.
_DIGITS = 12


def listed_rates(entry: Entry, discount: Decimal) -> Rates | None:
    """Return the rates of an entry; None if it has no price by the token.

    Args:
        discount: What a batch costs where the list has no price for batches, as a share.
    """
    standard = _steps(entry, "")
    if not standard:
        return None
    return Rates(
        standard=standard,
        tiers={
            tier: _steps(entry, f"_{tier}")
            for tier in _TIERS
            if any(key.endswith(f"_{tier}") for key in entry)
        },
        batch=_batch_steps(entry, standard, discount),
        fees=_fees(entry),
        surcharges=_surcharges(entry),
    )


def _steps(entry: Entry, tier: str) -> Steps:
    """The rates of a tier; where the list has none of its own, the ordinary ones."""
    ranges = [part for part in entry.get("tiered_pricing") or () if _KEYS["input"] in part]
    if ranges:
        return tuple(_range_rates(entry, part) for part in sorted(ranges, key=_first_token))
    steps = []
    for from_tokens, step in [(0, ""), *_lengths(entry, tier)]:
        found = _found(entry, dict.fromkeys((step + tier, step, tier, "")))
        # A tier's own output price includes its reasoning.
        if f"{_KEYS['output']}{tier}" in entry and f"{_KEYS['reasoning']}{tier}" not in entry:
            found.pop("reasoning", None)
        if not found:
            return ()
        steps.append(_with_defaults(entry, found, from_tokens))
    return tuple(steps)


def _batch_steps(entry: Entry, standard: Steps, discount: Decimal) -> Steps:
    if f"{_KEYS['input']}{_BATCH}" not in entry:
        return tuple(step.map(lambda _, rate: rate * discount) for step in standard)
    steps = []
    for from_tokens, step in [(0, ""), *_lengths(entry, _BATCH, ordinary=False)]:
        found = _found(entry, [step + _BATCH, _BATCH])
        guessed = standard[0].map(lambda _, rate: rate * discount)
        # A kind without a batch price costs the higher of two: the batch price of plain tokens,
        # and its ordinary price with the discount.
        for kind in standard[0].model_fields_set & set(_KEYS) - set(found):
            plain = found.get("output", Decimal(0)) if kind in OUTPUT_RATES else found["input"]
            found[kind] = max(plain, guessed.rate(kind))
        steps.append(_with_defaults(entry, found, from_tokens).reduced())
    return tuple(steps)


def _lengths(entry: Entry, tier: str, *, ordinary: bool = True) -> list[tuple[int, str]]:
    """The steps by length: the number of tokens at which each begins, and its part of the keys."""
    # https://docs.x.ai/docs/models: xAI's long prompts begin at the number itself.
    first = 0 if entry["litellm_provider"] == "xai" else 1
    ends = {tier, ""} if ordinary else {tier}
    return sorted(
        {
            (int(match[1]) * (1000 if match[2] else 1) + first, match[0])
            for key in entry
            if (match := _STEP.search(key)) and key[match.end() :] in ends
        }
    )


def _found(entry: Entry, suffixes: Iterable[str]) -> dict[str, Decimal]:
    """The rates by kind that the list has under the first of these ends of its keys."""
    found: dict[str, Decimal] = {}
    for kind, key in _KEYS.items():
        for suffix in suffixes:
            if (value := entry.get(key + suffix)) is not None:
                found[kind] = _per_million(value)
                break
    return found


def _with_defaults(entry: Entry, found: dict[str, Decimal], from_tokens: int) -> TokenRates:
    rates = {"input": Decimal(0), **found}
    if entry["litellm_provider"].startswith("fireworks_ai"):
        rates.setdefault("cached_input", rates["input"] * _FIREWORKS_CACHED_SHARE)
    # A model that only makes pictures has a price for pictures, and none for text.
    if not rates.get("output") and "image_output" in rates:
        rates["output"] = rates["image_output"]
    if _image_fee(entry):
        rates["image_input"] = Decimal(0)
    return TokenRates(**rates, from_tokens=from_tokens)


def _range_rates(entry: Entry, part: dict[str, Any]) -> TokenRates:
    first = _first_token(part)
    found = _found({_KEYS["output"]: entry.get(_KEYS["output"]), **part}, [""])
    return _with_defaults(entry, found, first + 1 if first else 0)


def _first_token(part: dict[str, Any]) -> int:
    """The number of tokens above which a range of lengths begins."""
    return int(part["range"][0])


def _fees(entry: Entry) -> Fees:
    searches = entry.get("search_context_cost_per_query")
    search = searches.get("search_context_size_medium") if isinstance(searches, dict) else None
    google = entry["litellm_provider"].startswith(("gemini", "vertex_ai"))
    return Fees(
        request=_exact(entry.get("input_cost_per_request") or 0),
        web_search=_exact(search or _SEARCH_FEES.get(entry["litellm_provider"]) or 0),
        maps_search=_exact(entry.get("google_maps_grounding_cost_per_query") or 0),
        # https://ai.google.dev/gemini-api/docs/pricing: Gemini 2.x counts prompts, 3.x searches.
        image=_image_fee(entry),
        search_once=google and entry.get("web_search_billing_unit", "per_prompt") == "per_prompt",
    )


def _image_fee(entry: Entry) -> Decimal:
    """The fee for a picture to embed, in place of its tokens. Other models count by tokens."""
    fee = entry.get("input_cost_per_image") if entry.get("mode") == "embedding" else None
    return _exact(fee or 0)


def _surcharges(entry: Entry) -> dict[str, Decimal]:
    # https://docs.claude.com/en/docs/about-claude/pricing: a region or a speed is a factor.
    factors = entry.get("provider_specific_entry") or {}
    return {
        name: _exact(value) for name, value in factors.items() if isinstance(value, int | float)
    }


def _per_million(value: float | str) -> Decimal:
    """Dollars per million tokens, from the list's dollars per token."""
    return Decimal(f"{_exact(value).scaleb(6):f}")


def _exact(value: Any) -> Decimal:
    """The price as the list has it. Raises ValueError for a value that is no number."""
    try:
        return Decimal(f"{float(value):.{_DIGITS}g}")
    except (TypeError, ValueError):
        raise ValueError(f"a price must be a number of dollars, not {value!r:.60}") from None
