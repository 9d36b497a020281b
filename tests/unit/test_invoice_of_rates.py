"""Our costs are the simulated provider's charges, which are summed by code of its own."""

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from config.listed_rates import listed_rates
from config.price_list import price_list
from primarch_fleet.prices import Rates, cost_nanousd
from primarch_fleet.usage import parse_usage
from workers.onebox.simulated import simulator_prices
from workers.onebox.simulator.invoice import Invoice
from workers.onebox.simulator.profile import Model

MODELS = [
    *("gpt-4o", "gpt-5", "gpt-audio", "text-embedding-3-small", "claude-sonnet-4-5"),
    *("gemini/gemini-2.5-pro", "gpt-6-luna"),
]


def rates(name: str) -> Rates:
    found = listed_rates(price_list()[name], Decimal("0.5"))
    assert found is not None
    return found


@st.composite
def openai_usages(draw: st.DrawFn) -> dict[str, Any]:
    prompt, answer = draw(st.integers(1, 500_000)), draw(st.integers(0, 50_000))
    cached = draw(st.integers(0, prompt))
    written = draw(st.integers(0, prompt - cached))
    reasoning = draw(st.integers(0, answer))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer + draw(st.integers(0, 1) | st.just(0)) * reasoning,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": written,
            "audio_tokens": draw(st.integers(0, prompt - cached - written)),
        },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": draw(st.integers(0, answer - reasoning)),
        },
    }


@st.composite
def anthropic_usages(draw: st.DrawFn) -> dict[str, Any]:
    minutes, hour = draw(st.integers(0, 200_000)), draw(st.integers(0, 200_000))
    return {
        "input_tokens": draw(st.integers(1, 200_000)),
        "cache_read_input_tokens": draw(st.integers(0, 200_000)),
        "cache_creation_input_tokens": minutes + hour,
        "cache_creation": {
            "ephemeral_5m_input_tokens": minutes,
            "ephemeral_1h_input_tokens": hour,
        },
        "output_tokens": draw(st.integers(0, 64_000)),
        # Gemini counts all searches of a prompt once; the simulator does not.
        "server_tool_use": {"web_search_requests": draw(st.integers(0, 1))},
    }


@given(
    st.sampled_from(MODELS),
    openai_usages() | anthropic_usages(),
    st.sampled_from([None, "default", "priority", "flex"]),
    st.booleans(),
)
def test_a_cost_is_the_provider_s_charge(
    name: str, usage: dict[str, Any], tier: str | None, batch: bool
) -> None:
    price, parsed = rates(name), parse_usage(usage, tier)
    assert parsed is not None
    model, invoice = Model.model_validate(simulator_prices(price)), Invoice()
    body = {"service_tier": None if batch else tier}
    invoice.charge(body, usage, name, model, "batch" if batch else "realtime")
    ours = cost_nanousd(price.in_batches() if batch else price, parsed)
    assert ours == invoice.as_json()["total_nanousd"]
