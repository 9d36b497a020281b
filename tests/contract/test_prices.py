"""Our sum over the price list is LiteLLM's own, apart from what only LiteLLM knows."""

import importlib
import random
from decimal import Decimal
from typing import Any

import pytest

import workers.realtime  # noqa: F401 - LiteLLM's settings, before its import
from config.listed_rates import listed_rates
from config.price_list import Entry, find_entry, price_list
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.usage import parse_usage

litellm: Any = importlib.import_module("litellm")

#: Perplexity bills by its own figure; the others' calculators log in to an account.
OWN_RULES = {"perplexity", "github_copilot", "chatgpt"}
#: The share of the list's chat models that is compared: 1 of this many.
STRIDE = 5


def random_usage(dice: random.Random) -> dict[str, Any]:
    prompt = dice.randint(1, dice.choice([500, 5000, 150_000, 300_000, 600_000]))
    cached = dice.choice([0, dice.randint(0, prompt)])
    written = dice.choice([0, dice.randint(0, prompt - cached)])
    audio = dice.choice([0, dice.randint(0, prompt - cached - written)])
    explicit = dice.choice([{}, {"cache_type": "ephemeral"}])
    output = dice.randint(1, 5000)
    reasoning = dice.choice([0, dice.randint(0, output)])
    hour = dice.choice([0, written // 2])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            **explicit,
            "audio_tokens": audio,
            "cache_creation_tokens": written,
            "cache_creation_token_details": {
                "ephemeral_5m_input_tokens": written - hour,
                "ephemeral_1h_input_tokens": hour,
            },
        },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": dice.choice([0, dice.randint(0, output - reasoning)]),
        },
    }


def litellm_nanousd(name: str, provider: str, usage: dict[str, Any], tier: str | None) -> int:
    dollars: tuple[float, float] = litellm.cost_per_token(
        model=name.removeprefix(f"{provider}/"),
        custom_llm_provider=provider,
        usage_object=litellm.Usage(**usage),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        service_tier=tier,
    )
    return round(sum(dollars) * 10**9)


def our_nanousd(name: str, provider: str, usage: dict[str, Any], tier: str | None) -> int:
    entry = find_entry(provider, name.removeprefix(f"{provider}/"))
    assert entry is not None
    rates, parsed = listed_rates(entry, Decimal("0.5")), parse_usage(usage)
    assert parsed is not None
    return 0 if rates is None else cost_nanousd(rates, parsed, tier=tier)


def provider_of(entry: Entry) -> str:
    """The provider as a deployment names it; the list divides two of them."""
    listed = str(entry["litellm_provider"])
    return {"vertex_ai": "vertex_ai", "bedrock_converse": "bedrock"}.get(
        listed.partition("-")[0], listed
    )


@pytest.mark.parametrize("tier", [None, "flex", "priority"])
def test_cost_when_usages_are_random_is_the_one_of_litellm(
    tier: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(7)  # noqa: S311
    entries = [
        (name, entry)
        for name, entry in list(price_list().items())[::STRIDE]
        if entry.get("mode") in ("chat", "responses")
        and entry["litellm_provider"] not in OWN_RULES
        # LiteLLM alone knows the prices that change with the time of day.
        and "off_peak_pricing" not in entry
    ]
    different = []
    for name, entry in entries:
        usage, provider = random_usage(dice), provider_of(entry)
        theirs = litellm_nanousd(name, provider, usage, tier)
        ours = our_nanousd(name, provider, usage, tier)
        if abs(theirs - ours) > max(2, theirs // 10**9):
            different.append(f"{name}: {ours}, LiteLLM {theirs}")
    with capsys.disabled():
        print(f"\n{tier or 'ordinary'}: {len(entries) - len(different)} of {len(entries)} agree")
    # With a tier, LiteLLM ignores that of Fireworks, and the long prompts' price of writes for 1 h.
    different = [line for line in different if "fireworks_ai" not in line]
    assert len(different) <= (0 if tier is None else len(entries) // 100), different


@pytest.mark.parametrize(
    "details",
    [
        {"image_count": 3},
        {"image_count": 2, "image_tokens": 2, "text_tokens": 254},
        None,
    ],
)
def test_cost_of_pictures_to_embed_is_the_one_of_litellm(details: dict[str, int] | None) -> None:
    usage = {
        "prompt_tokens": 256,
        "completion_tokens": 0,
        "total_tokens": 256,
        "prompt_tokens_details": details,
    }
    different, count = [], 0
    for name, entry in price_list().items():
        # A model without a price for tokens is refused at start.
        prices = {"input_cost_per_image", "input_cost_per_token"}
        if entry.get("mode") == "embedding" and prices <= entry.keys():
            provider, count = provider_of(entry), count + 1
            ours = our_nanousd(name, provider, usage, None)
            theirs = litellm_nanousd(name, provider, usage, None)
            different += [] if ours == theirs else [f"{name}: {ours}, LiteLLM {theirs}"]
    assert (different, count > 3) == ([], True)
