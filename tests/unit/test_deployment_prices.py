"""Prices of deployments: the price list's, with those of fleet.yaml in place."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from config.fleet import FleetConfig
from config.listed_rates import listed_rates
from config.price import DEFAULT_DISCOUNT
from config.price_list import price_list
from primarch_fleet.prices import Rates, TokenRates, max_cost_nanousd
from primarch_fleet.usage import Usage


def config(*deployments: dict[str, Any], **sections: Any) -> FleetConfig:
    """A fleet with these deployments, at OpenAI unless they say otherwise."""
    names = {entry.get("provider", "openai") for entry in deployments}
    return FleetConfig.model_validate(
        {
            "providers": {
                name: {"litellm_provider": name, "api_key": "os.environ/KEY"} for name in names
            },
            "deployments": [
                {"id": str(number), "model": "m", "provider": "openai", **entry}
                for number, entry in enumerate(deployments)
            ],
            **sections,
        }
    )


def rates(upstream: str, batch: dict[str, Any] | None = None, **entry: Any) -> Rates:
    fleet = config({"upstream": upstream, **entry}, batch=batch or {})
    return fleet.rates(fleet.deployments[0])


def some(card: TokenRates, *kinds: str) -> list[float]:
    return [float(card.rate(kind)) for kind in kinds]


def test_a_listed_model_without_a_price_has_the_one_of_the_list() -> None:
    assert some(rates("gpt-4o").base, "input", "cached_input", "output") == [2.5, 1.25, 10]


def test_a_price_that_is_the_one_of_the_list_keeps_the_other_kinds_and_tiers() -> None:
    price = {"input": "2.50", "output": "10.00"}
    assert rates("gpt-4o", price=price) == rates("gpt-4o")


def test_a_kind_that_a_changed_price_does_not_name_costs_the_plain_price_or_the_list_s() -> None:
    cheaper = rates("gpt-4o", price={"input": "2.00", "output": "10.00"})
    assert some(cheaper.base, "input", "cached_input", "output") == [2, 2, 10]
    dearer = rates("gpt-4o", price={"input": "5", "output": "20"})
    assert some(dearer.base, "cached_input", "reasoning") == [5, 20]
    assert some(dearer.tiers["priority"][0], "input", "cached_input", "output") == [5, 5, 20]
    sound = rates("gpt-audio", price={"input": "1", "output": "2"})
    assert some(sound.base, "input", "audio_input", "audio_output") == [1, 32, 64]


def test_a_kind_without_a_price_in_the_list_costs_the_changed_price_it_falls_back_to() -> None:
    cheaper = rates("gpt-5", price={"input": "1", "output": "8"})
    assert some(cheaper.base, "cache_write", "image_input", "output", "reasoning") == [1, 1, 8, 8]
    assert some(cheaper.in_batches().base, "reasoning") == [4]
    written = rates("gpt-4o", price={"cache_write": "3", "cached_input": "0.5"})
    assert some(written.base, "cache_write_1h", "cached_audio_input", "audio_input") == [
        3,
        0.5,
        2.5,
    ]
    vectors = rates("text-embedding-3-large", price={"input": "0.10"})
    assert max_cost_nanousd([vectors], Usage(1000)) == 100_000


def test_a_kind_that_the_price_names_costs_that_alone() -> None:
    changed = rates("gpt-4o", price={"cached_input": "0.50"})
    assert some(changed.base, "input", "cached_input", "output") == [2.5, 0.5, 10]
    assert some(changed.tiers["priority"][0], "input", "cached_input") == [4.25, 2.125]


def test_a_changed_price_costs_its_half_in_a_batch_and_a_discount_is_for_all() -> None:
    changed = rates("gpt-4o", price={"input": "2", "output": "8"})
    assert some(changed.in_batches().base, "input", "output") == [1, 4]
    discounted = rates("gpt-4o", batch={"discount": "0.8"})
    assert some(discounted.in_batches().base, "input", "cached_input", "output") == [2, 1, 8]
    own = rates("gpt-4o", price={"batch": {"input": "0.1"}})
    assert some(own.in_batches().base, "input", "output") == [0.1, 5]


def test_a_tier_that_the_price_names_costs_that() -> None:
    price = {"input": "1", "output": "2", "tiers": {"priority": {"output": "9"}}}
    unlisted = rates("mine", price=price)
    assert some(unlisted.tiers["priority"][0], "input", "output", "reasoning") == [1, 9, 9]
    listed = rates("gpt-4o", price={"tiers": {"flex": {"input": "1"}}})
    assert some(listed.tiers["flex"][0], "input", "output") == [1, 10]
    assert some(listed.tiers["priority"][0], "input") == [4.25]


def test_a_long_prompt_costs_the_step_of_the_list_or_the_changed_price() -> None:
    model = "gemini-2.5-pro"
    price = {"input": "2", "output": "12"}
    steps = rates(model, provider="gemini", price=price).standard
    assert [(step.from_tokens, *some(step, "input", "output")) for step in steps] == [
        (0, 2, 12),
        (200_001, 2.5, 15),
    ]


@pytest.mark.parametrize("entry", [{"upstream": "mine"}, {"upstream": "text-moderation-x"}])
def test_a_model_in_neither_is_an_error_that_says_what_to_do(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"deployments\.0\.price\.input: missing.*base_model"):
        config(entry)


def test_a_price_of_0_in_the_list_is_no_price_except_for_moderations() -> None:
    with pytest.raises(ValidationError, match=r"deployments\.0\.price\.input: missing"):
        config({"upstream": "gemini-exp-1114", "provider": "gemini"})
    assert rates("omni-moderation-latest").is_zero


def test_a_model_on_own_hardware_is_free_unless_it_has_a_price() -> None:
    assert rates("llama3", provider="ollama").is_zero
    priced = rates("llama3", provider="ollama", price={"input": "1", "output": "2"})
    assert some(priced.base, "input", "output") == [1, 2]


def test_a_free_deployment_of_a_listed_model_costs_nothing() -> None:
    assert rates("gpt-4o", free=True).is_zero


def test_a_deployment_has_the_kind_and_the_lengths_of_the_list_unless_it_says_others() -> None:
    listed, own, embedding = config(
        {"upstream": "gpt-4o"},
        {"upstream": "gpt-4o", "max_output_tokens": 5, "context_length": 7},
        {"upstream": "text-embedding-3-small"},
    ).deployments
    assert (listed.kind, listed.max_output_tokens, listed.context_length) == (
        "chat",
        16_384,
        128_000,
    )
    assert (own.max_output_tokens, own.context_length) == (5, 7)
    assert (embedding.kind, embedding.context_length) == ("embedding", 8191)


def test_a_region_with_a_surcharge_multiplies_the_prices_of_tokens() -> None:
    name = "vertex_ai/gemini-3.5-flash"
    params = {"vertex_location": "europe-west1"}
    base = rates(name, provider="vertex_ai").base.input
    assert rates(name, provider="vertex_ai", litellm_params=params).base.input == base * Decimal(
        "1.1"
    )
    host = {"api_base": "https://eu.api.openai.com/v1"}
    base = rates("gpt-6-luna").base.input
    assert rates("gpt-6-luna", litellm_params=host).base.input == base * Decimal("1.1")


@pytest.mark.parametrize("location", ["global", "europe-west1"])
def test_a_region_may_be_a_variable(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.setenv("A_LOCATION", location)
    name = "vertex_ai/gemini-3.5-flash"
    written, referred = (
        rates(name, provider="vertex_ai", litellm_params={"vertex_location": value})
        for value in (location, "os.environ/A_LOCATION")
    )
    assert referred == written


def test_a_price_of_a_region_counts_if_the_region_is_a_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_REGION", "sa-east-1")
    model, params = "meta.llama3-70b-instruct-v1:0", {"aws_region_name": "os.environ/A_REGION"}
    regional = rates(model, provider="bedrock", litellm_params=params)
    assert regional == listed_rates(price_list()[f"bedrock/sa-east-1/{model}"], DEFAULT_DISCOUNT)


def test_a_name_of_your_choice_has_the_price_of_its_base_model() -> None:
    info = {"base_model": "azure/gpt-4o"}
    assert some(rates("mine", provider="azure", model_info=info).base, "input") == [2.5]


def test_a_price_that_is_null_is_the_one_of_the_list() -> None:
    nulls = {"input_cost_per_token": None, "output_cost_per_token": None}
    assert rates("gpt-4o", model_info=nulls) == rates("gpt-4o")


def test_names_and_prices_may_be_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_BASE_MODEL", "azure/gpt-4o")
    monkeypatch.setenv("A_PRICE", "3e-6")
    info = {"base_model": "os.environ/A_BASE_MODEL", "input_cost_per_token": "os.environ/A_PRICE"}
    mine = rates("mine", provider="azure", model_info=info)
    assert some(mine.base, "input", "output") == [3, 10]


def test_an_own_bill_counts_for_providers_that_report_it_unless_there_is_a_price() -> None:
    price = {"input": "1", "output": "2"}
    fleet = config(
        {"upstream": "openai/gpt-4o", "provider": "openrouter"},
        {"upstream": "openai/gpt-4o", "provider": "openrouter", "price": price},
        {"upstream": "gpt-4o"},
    )
    assert [fleet.has_own_bill(one) for one in fleet.deployments] == [True, False, False]


def test_rates_of_an_offer_are_those_of_its_lane() -> None:
    fleet = config({"upstream": "gpt-5", "batch": True})
    lanes = fleet.catalogue().models["m"].lanes
    assert some(lanes["realtime"].price.base, "input") == [1.25]
    assert some(lanes["batch"].price.base, "input", "cached_input") == [0.625, 0.0625]
    assert lanes["batch"].price.base.input == Decimal("0.625")
