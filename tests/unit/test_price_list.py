"""The price list: entries are found by the names that LiteLLM takes, and become exact rates."""

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from config.listed_rates import listed_rates
from config.price_list import find_entry, price_list
from primarch_fleet.prices import Rates, cost_nanousd
from primarch_fleet.usage import Usage

HALF = Decimal("0.5")


def rates(entry: dict[str, Any], provider: str = "openai") -> Rates:
    result = listed_rates({"litellm_provider": provider, **entry}, HALF)
    assert result is not None
    return result


def numbers(*values: Decimal) -> tuple[float, ...]:
    return tuple(map(float, values))


def listed(provider: str, model: str) -> Rates:
    entry = find_entry(provider, model)
    assert entry is not None
    result = listed_rates(entry, HALF)
    assert result is not None
    return result


def test_list_when_it_is_read_does_not_import_litellm() -> None:
    code = "import sys, config.price_list as p; p.price_list(); print('litellm' in sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


@pytest.mark.parametrize(
    ("provider", "model", "key"),
    [
        ("openai", "gpt-4o", "gpt-4o"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "ft:gpt-4o-2024-08-06:org::id", "ft:gpt-4o-2024-08-06"),
        ("azure", "gpt-4o", "azure/gpt-4o"),
        ("azure", "eu/gpt-4o-2024-08-06", "azure/eu/gpt-4o-2024-08-06"),
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("gemini", "gemini-2.5-pro", "gemini/gemini-2.5-pro"),
        ("vertex_ai", "gemini-2.5-pro", "gemini-2.5-pro"),
        ("groq", "openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        (
            "bedrock",
            "converse/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        ("bedrock", "meta.llama3-8b-instruct-v1:0:8k", "meta.llama3-8b-instruct-v1:0"),
        ("openai", "responses/gpt-5-pro", "gpt-5-pro"),
        ("azure", "responses/gpt-5-pro", "azure/gpt-5-pro"),
        ("openrouter", "openai/gpt-4o", "gpt-4o"),
        ("openrouter", "anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
    ],
)
def test_entry_when_a_deployment_names_its_model_is_the_one_of_litellm(
    provider: str, model: str, key: str
) -> None:
    assert find_entry(provider, model) is price_list()[key]


def test_entry_when_the_region_has_its_own_price_is_the_one_of_the_region() -> None:
    model = "meta.llama3-70b-instruct-v1:0"
    entry = find_entry("bedrock", model, region="us-east-1")
    assert entry is price_list()["bedrock/us-east-1/" + model]
    assert find_entry("bedrock", model, region="nowhere-1") is price_list()[model]


def test_entry_when_a_base_model_is_named_is_its_entry() -> None:
    entry = find_entry("azure", "my-deployment", base_model="azure/gpt-4o")
    assert entry is price_list()["azure/gpt-4o"]


def test_entry_when_the_model_is_of_another_provider_or_unknown_is_none() -> None:
    assert find_entry("groq", "gpt-4o") is None
    assert find_entry("openai", "no-such-model") is None
    assert find_entry("azure", "my-deployment") is None


@pytest.mark.parametrize(
    ("provider", "model", "usage", "how", "nanousd"),
    [
        ("openai", "gpt-4o", Usage(1000, 9000, text_output_tokens=100), {}, 14_750_000),
        ("openai", "gpt-5", Usage(1000, 9000, text_output_tokens=100), {"batch": True}, 1_687_500),
        (
            "anthropic",
            "claude-sonnet-4-5",
            Usage(3, cache_write_tokens=12_304, text_output_tokens=550),
            {},
            54_399_000,
        ),
        (
            "openai",
            "gpt-audio",
            Usage(20, audio_input_tokens=6000, text_output_tokens=50),
            {},
            192_550_000,
        ),
        (
            "openai",
            "gpt-4o",
            Usage(1000, text_output_tokens=1000),
            {"tier": "priority"},
            21_250_000,
        ),
        ("openai", "gpt-5", Usage(1000, text_output_tokens=1000), {"tier": "flex"}, 5_625_000),
        (
            "azure",
            "gpt-6-astra",
            Usage(300_000, text_output_tokens=500),
            {"tier": "flex"},
            3_018_750_000,
        ),
        (
            "dashscope",
            "qwen3.7-max",
            Usage(
                71,
                explicit_cached_input_tokens=2048,
                cache_write_tokens=900,
                text_output_tokens=104,
            ),
            {},
            4_282_000,
        ),
        ("bedrock", "amazon.titan-embed-image-v1", Usage(images=1), {}, 60_000),
        (
            "bedrock",
            "amazon.nova-2-multimodal-embeddings-v1:0",
            Usage(100, image_input_tokens=256, images=2),
            {},
            13_500 + 120_000,
        ),
        ("xai", "grok-4.20", Usage(1000, web_searches=2), {}, 1_250_000 + 10_000_000),
        ("openai", "text-embedding-3-small", Usage(9), {}, 180),
        ("openai", "text-embedding-3-small", Usage(9), {"batch": True}, 90),
        (
            "gemini",
            "gemini-2.5-pro",
            Usage(200_001, text_output_tokens=10),
            {},
            200_001 * 2500 + 150_000,
        ),
        (
            "anthropic",
            "claude-sonnet-4-5",
            Usage(cache_write_1h_tokens=1000, web_searches=2),
            {},
            6_000_000 + 20_000_000,
        ),
    ],
)
def test_cost_when_the_rates_are_the_list_s_is_the_provider_s_price(
    provider: str, model: str, usage: Usage, how: dict[str, Any], nanousd: int
) -> None:
    price = listed(provider, model)
    price = price.in_batches() if how.pop("batch", False) else price
    assert cost_nanousd(price, usage, **how) == nanousd


def test_tier_when_the_list_has_only_some_of_its_rates_takes_the_ordinary_ones() -> None:
    price = rates(
        {
            "input_cost_per_token": 1e-6,
            "input_cost_per_token_priority": 2e-6,
            "input_cost_per_token_above_200k_tokens": 3e-6,
            "output_cost_per_token": 10e-6,
            "output_cost_per_reasoning_token": 20e-6,
            "cache_read_input_token_cost": 1e-7,
        }
    )
    short, long = price.tiers["priority"]
    assert numbers(short.input, short.output, short.rate("cached_input")) == (2, 10, 0.1)
    assert numbers(short.rate("reasoning"), long.input) == (20, 3)
    assert long.from_tokens == 200_001


def test_tier_when_the_list_has_it_for_long_prompts_alone_is_one() -> None:
    price = rates(
        {
            "input_cost_per_token": 2e-6,
            "input_cost_per_token_above_200k_tokens": 4e-6,
            "input_cost_per_token_above_200k_tokens_flex": 3e-6,
        }
    )
    assert [float(step.input) for step in price.tiers["flex"]] == [2, 3]
    assert set(price.tiers) == {"flex"}


def test_tier_when_it_has_an_output_price_includes_its_reasoning() -> None:
    price = rates(
        {
            "input_cost_per_token_flex": 1e-6,
            "input_cost_per_token": 2e-6,
            "output_cost_per_token": 4e-6,
            "output_cost_per_token_flex": 2e-6,
            "output_cost_per_reasoning_token": 9e-6,
        }
    )
    assert price.base.rate("reasoning") == 9
    assert price.tiers["flex"][0].rate("reasoning") == 2


def test_batch_when_the_list_has_no_batch_price_costs_the_discounted_rates() -> None:
    price = rates({"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6})
    assert numbers(price.batch[0].input, price.batch[0].output) == (0.5, 2)


def test_batch_when_a_kind_has_no_batch_price_costs_the_dearer_guess() -> None:
    price = rates(
        {
            "input_cost_per_token": 2e-6,
            "input_cost_per_token_batches": 1e-6,
            "output_cost_per_token": 4e-6,
            "output_cost_per_token_batches": 2e-6,
            "cache_read_input_token_cost": 1e-6,
            "input_cost_per_audio_token": 30e-6,
        }
    )
    batch = price.batch[0]
    assert numbers(batch.rate("cached_input"), batch.rate("audio_input")) == (1, 15)
    assert numbers(batch.rate("image_input"), batch.rate("reasoning")) == (1, 2)


def test_ranges_when_a_model_has_them_are_steps() -> None:
    price = rates(
        {
            "output_cost_per_token": 9e-6,
            "tiered_pricing": [
                {"range": [32000, 128000], "input_cost_per_token": 2e-6},
                {
                    "range": [0, 32000],
                    "input_cost_per_token": 1e-6,
                    "output_cost_per_token": 3e-6,
                },
            ],
        }
    )
    short, long = price.standard
    assert (short.from_tokens, long.from_tokens) == (0, 32_001)
    assert numbers(short.input, short.output, long.input, long.output) == (1, 3, 2, 9)


def test_long_prompts_of_xai_begin_at_the_number_itself() -> None:
    entry = {"input_cost_per_token": 1e-6, "input_cost_per_token_above_200k_tokens": 2e-6}
    assert rates(entry, "xai").standard[1].from_tokens == 200_000


def test_rates_when_the_list_has_binary_noise_are_clean() -> None:
    assert rates({"input_cost_per_token": 3.2000000000000003e-06}).base.input == Decimal("3.2")


def test_entry_without_a_price_by_the_token_has_no_rates() -> None:
    assert listed_rates({"litellm_provider": "openai", "mode": "chat"}, HALF) is None


def test_every_entry_of_the_list_has_rates_or_none() -> None:
    for name, entry in price_list().items():
        price = listed_rates(entry, HALF)
        assert price is None or cost_nanousd(price, Usage(1)) >= 0, name
