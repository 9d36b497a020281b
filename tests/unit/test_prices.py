"""Prices: exact nano-dollars of each kind of token."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primarch_fleet.prices import (
    RATE_KINDS,
    Fees,
    Rates,
    TokenRates,
    cost_nanousd,
    max_cost_nanousd,
)
from primarch_fleet.usage import INPUT_KINDS, OUTPUT_KINDS, Usage, parse_usage, token_counts


def rates(**own: Any) -> Rates:
    return Rates(**own)


GPT_4O = Rates(
    standard=(TokenRates(input="2.50", output="10", cached_input="1.25"),),
    tiers={"priority": (TokenRates(input="4.25", output="17", cached_input="2.125"),)},
)
GPT_5 = Rates(
    standard=(TokenRates(input="1.25", output="10", cached_input="0.125"),),
    tiers={"flex": (TokenRates(input="0.625", output="5", cached_input="0.0625"),)},
    batch=(TokenRates(input="0.625", output="5", cached_input="0.0625"),),
)
CLAUDE = rates(input="3", output="15", cached_input="0.3", cache_write="3.75", cache_write_1h="6")
AUDIO = rates(input="2.50", output="10", audio_input="32", audio_output="64")
EMBEDDING = Rates(standard=(TokenRates(input="0.02"),), batch=(TokenRates(input="0.01"),))

CACHED = {
    "prompt_tokens": 10_000,
    "prompt_tokens_details": {"cached_tokens": 9000},
    "completion_tokens": 100,
}
THOUSAND = {"prompt_tokens": 1000, "completion_tokens": 1000}
ROWS: dict[str, tuple[Rates, dict[str, Any], dict[str, Any], int]] = {
    "cached": (GPT_4O, CACHED, {}, 14_750_000),
    "cached in a batch": (GPT_5.in_batches(), CACHED, {}, 1_687_500),
    "cache write": (
        CLAUDE,
        {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "output_tokens": 550},
        {},
        54_399_000,
    ),
    "audio": (
        AUDIO,
        {
            "prompt_tokens": 6020,
            "prompt_tokens_details": {"audio_tokens": 6000},
            "completion_tokens": 50,
        },
        {},
        192_550_000,
    ),
    "priority": (GPT_4O, THOUSAND | {"service_tier": "priority"}, {}, 21_250_000),
    "priority, served at default": (
        GPT_4O,
        THOUSAND | {"service_tier": "default"},
        {"tier": "priority"},
        12_500_000,
    ),
    "priority, served without a word": (GPT_4O, THOUSAND, {"tier": "priority"}, 21_250_000),
    "unknown tier": (GPT_4O, THOUSAND | {"service_tier": "scale"}, {}, 12_500_000),
    "flex": (GPT_5, THOUSAND | {"service_tier": "flex"}, {}, 5_625_000),
    "embedding": (EMBEDDING, {"prompt_tokens": 9}, {}, 180),
    "embedding in a batch": (EMBEDDING.in_batches(), {"prompt_tokens": 9}, {}, 90),
    "reasoning apart": (
        GPT_5,
        {
            "prompt_tokens": 10_120,
            "completion_tokens": 1499,
            "total_tokens": 14_428,
            "completion_tokens_details": {"reasoning_tokens": 2809},
        },
        {},
        10_120 * 1250 + 4308 * 10_000,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_cost_when_the_provider_reports_kinds_of_tokens_is_exact(row: str) -> None:
    price, usage, how, expected = ROWS[row]
    parsed = parse_usage(usage)
    assert parsed is not None
    assert cost_nanousd(price, parsed, **how) == expected


def test_kinds_without_a_rate_of_their_own_cost_the_plain_rate() -> None:
    one_of_each: dict[str, Any] = dict.fromkeys(INPUT_KINDS + OUTPUT_KINDS, 1)
    usage = Usage(**one_of_each)
    assert cost_nanousd(rates(input="1", output="100"), usage) == 11 * 1000 + 5 * 100_000
    own = rates(input="1", output="100", cached_input="2", cache_write="3")
    assert cost_nanousd(own, usage) == (4 * 1 + 4 * 2 + 3 * 3) * 1000 + 5 * 100_000


def test_half_a_nano_dollar_is_rounded_up_once() -> None:
    assert cost_nanousd(rates(input="0.0005"), Usage(1)) == 1
    assert cost_nanousd(rates(input="0.0005", output="0.0005"), Usage(1, text_output_tokens=1)) == 1
    assert cost_nanousd(rates(input="0.000333"), Usage(1)) == 0


def test_steps_when_the_prompt_reaches_them_price_the_whole_request() -> None:
    price = Rates(
        standard=(
            TokenRates(input="1", output="10"),
            TokenRates(input="2", output="15", from_tokens=200_001),
        )
    )
    assert cost_nanousd(price, Usage(200_000, text_output_tokens=1)) == 200_010_000
    cached = Usage(1, cached_input_tokens=200_000, text_output_tokens=1)
    assert cost_nanousd(price, cached) == 400_017_000


def test_fees_and_surcharges_when_the_usage_has_them_are_added() -> None:
    price = Rates(
        standard=(TokenRates(input="1"),),
        fees=Fees(request="0.005", web_search="0.01"),
        surcharges={"us": "1.1", "fast": "2"},
    )
    assert cost_nanousd(price, Usage(10, web_searches=2)) == 10_000 + 5_000_000 + 20_000_000
    assert cost_nanousd(price, Usage(10, surcharges=("us", "fast"))) == 22_000 + 5_000_000
    once = price.model_copy(update={"fees": Fees(web_search="0.01", search_once=True)})
    assert cost_nanousd(once, Usage(10, web_searches=2)) == 10_000 + 10_000_000


def test_reservation_when_text_may_be_written_to_a_cache_has_the_dearest_rate() -> None:
    bound = Usage(1000, text_output_tokens=100)
    assert max_cost_nanousd([CLAUDE], bound) == 1000 * 3750 + 100 * 15_000
    assert max_cost_nanousd([GPT_4O, CLAUDE], bound) == 1000 * 3750 + 100 * 15_000
    assert max_cost_nanousd([CLAUDE], Usage(cache_write_1h_tokens=1000)) == 1000 * 6000


def test_reservation_when_surcharges_are_asked_for_has_them() -> None:
    price = Rates(standard=(TokenRates(input="1"),), surcharges={"us": "1.1", "fast": "2"})
    bound = Usage(1000, surcharges=("us", "fast"))
    assert max_cost_nanousd([price], bound) == cost_nanousd(price, bound) == 2_200_000
    assert max_cost_nanousd([price], Usage(1000, surcharges=("eu",))) == 1_000_000


def test_reservation_when_a_tier_is_asked_for_has_the_dearer_of_it_and_the_ordinary_one() -> None:
    bound = Usage(1000, text_output_tokens=1000)
    for tier in ("priority", "auto"):
        assert max_cost_nanousd([GPT_4O], bound, tier=tier) == 21_250_000
    assert max_cost_nanousd([GPT_4O], bound) == 12_500_000
    assert max_cost_nanousd([GPT_5], bound, tier="flex") == 11_250_000
    assert max_cost_nanousd([GPT_5.in_batches()], bound) == 5_625_000


counts = st.builds(
    Usage,
    *[st.integers(0, 300_000)] * 10,
    *[st.integers(0, 50_000)] * 5,
    service_tier=st.sampled_from([None, "default", "priority"]),
)
any_rate = st.decimals(0, 100, places=6)
token_rates = st.builds(
    TokenRates,
    **{name: any_rate for name in TokenRates.model_fields if name != "from_tokens"},
)


@given(counts, token_rates, token_rates, token_rates)
def test_cost_when_the_request_is_as_long_as_bounded_is_never_above_the_reservation(
    usage: Usage, short: TokenRates, long: TokenRates, priority: TokenRates
) -> None:
    price = Rates(
        standard=(short, long.model_copy(update={"from_tokens": 200_001})),
        tiers={"priority": (priority,)},
    )
    assert cost_nanousd(price, usage, tier="priority") <= max_cost_nanousd(
        [price], usage, tier="priority"
    )


@given(counts, token_rates)
def test_cost_when_compared_with_decimals_is_the_same(usage: Usage, own: TokenRates) -> None:
    exact = sum(
        (
            count * own.rate(kind) * 1000
            for count, kind in zip(token_counts(usage), RATE_KINDS, strict=True)
        ),
        Decimal(0),
    )
    assert abs(cost_nanousd(Rates(standard=(own,)), usage) - exact) <= Decimal("0.5")


def test_rates_when_an_older_version_stored_them_are_flat() -> None:
    stored = Rates.model_validate_json('{"input": "0.15", "output": "0.60"}')
    assert stored == Rates(input="0.15", output="0.60") == Rates(standard=[stored.base])


def test_rates_when_they_travel_as_json_are_the_same() -> None:
    assert Rates.model_validate_json(GPT_5.model_dump_json()) == GPT_5
