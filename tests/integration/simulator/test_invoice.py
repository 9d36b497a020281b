"""The simulated provider's charges, to the nano-dollar."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from tests.integration.simulator.batch_file import create, lines
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.invoice import Kind, picodollars, tokens
from workers.onebox.simulator.profile import BatchProfile, Fault, Model

# A request of `lines` counts 3 + 4 + ceil(10/4) tokens, its answer ceil(31/4).
LINE = {"input": 10, "output": 8}
GPT_4O = Model(
    input="2.5",
    output=10,
    cached_input="1.25",
    tiers={"priority": {"input": "4.25", "output": 17}},
)
GPT_5 = Model(
    input="1.25",
    output=10,
    batch={"input": "0.625", "output": 5, "cached_input": "0.0625"},
    tiers={"flex": {"input": "0.625", "output": 5}},
)
CLAUDE = Model(input=3, output=15, cached_input="0.3", cache_write_5m="3.75", cache_write_1h=6)
AUDIO = Model(input="2.5", output=10, audio_input=32)
STEPS = Model(input=1, output=2, steps={200_000: {"input": 2, "output": 3}})


def usage(prompt: int, answer: int, **details: int) -> dict[str, Any]:
    parts = {"prompt_tokens_details": details} if details else {}
    total = prompt + answer
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total, **parts}


@pytest.mark.parametrize(
    ("body", "model", "kind", "tier", "nanousd"),
    [
        (usage(10_000, 100, cached_tokens=9_000), GPT_4O, "realtime", None, 14_750_000),
        (usage(10_000, 100, cached_tokens=9_000), GPT_5, "batch", None, 1_687_500),
        (usage(6_020, 50, audio_tokens=6_000), AUDIO, "realtime", None, 192_550_000),
        (usage(1_000, 1_000), GPT_4O, "realtime", "priority", 21_250_000),
        (usage(1_000, 1_000), GPT_4O, "realtime", "default", 12_500_000),
        (usage(1_000, 1_000), GPT_5, "realtime", "flex", 5_625_000),
        ({"prompt_tokens": 9, "total_tokens": 9}, Model(input="0.02"), "realtime", None, 180),
        ({"prompt_tokens": 9, "total_tokens": 9}, Model(input="0.02"), "batch", None, 90),
        # Reasoning apart: the total has more than the prompt and the answer.
        (
            usage(10_120, 1_499) | {"total_tokens": 14_428},
            Model(output=1),
            "realtime",
            None,
            4_308_000,
        ),
        (usage(200_000, 1), STEPS, "realtime", None, 200_002_000),
        (usage(200_001, 1), STEPS, "realtime", None, 400_005_000),
        (
            {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "output_tokens": 550},
            CLAUDE,
            "realtime",
            None,
            54_399_000,
        ),
        (
            {
                "input_tokens": 3,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 50,
                "cache_creation": {"ephemeral_1h_input_tokens": 20},
                "server_tool_use": {"web_search_requests": 2},
            },
            CLAUDE.model_copy(update={"web_search": Decimal(10_000)}),
            "realtime",
            None,
            20_271_500,
        ),
        (
            {
                "input_tokens": 100,
                "input_tokens_details": {"cached_tokens": 80},
                "output_tokens": 10,
                "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 110,
            },
            GPT_4O.model_copy(update={"reasoning": Decimal(20)}),
            "realtime",
            None,
            290_000,
        ),
    ],
)
def test_a_usage_costs_each_kind_of_its_tokens(
    body: dict[str, Any], model: Model, kind: Kind, tier: str | None, nanousd: int
) -> None:
    assert picodollars(tokens(body), model, kind, tier) == nanousd * 1_000


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.decimals(0, 1000, places=4),
    st.decimals(0, 1000, places=4),
)
def test_cost_is_exact(inputs: int, outputs: int, price: Decimal, other: Decimal) -> None:
    exact = (inputs * Fraction(price) + outputs * Fraction(other)) / 2 * 1_000_000
    model = Model(input=price, output=other)
    assert picodollars({"input": inputs, "output": outputs}, model, "batch") == exact


def test_prices_in_json_may_be_numbers_or_strings_and_are_exact() -> None:
    for price in ('"0.15"', "0.15"):
        model = Model.model_validate_json(f'{{"input": {price}}}')
        assert model.input == Decimal("0.15")


def test_the_invoice_adds_up_realtime_and_batch(
    client: OpenAI, http: httpx.Client, sim: Simulator, clock: VirtualClock
) -> None:
    for model in ("m", "other", "other"):
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "question 0"}]
        )
    client.embeddings.create(model="e", input="a" * 1000)
    create(client, lines(3))
    clock.advance(10)
    client.batches.list()
    one = int(picodollars(LINE, MODELS["m"], "realtime")) // 1_000
    other = int(picodollars(LINE, MODELS["other"], "realtime")) // 1_000
    assert (one, other) == (6_300, 150_000)
    embedding = 5_000  # 250 * 0.02
    invoice = sim.invoice()
    assert invoice["total_nanousd"] == one + 3 * one // 2 + 2 * other + embedding
    assert invoice["by_model_nanousd"] == {
        "m": one + 3 * one // 2,
        "other": 2 * other,
        "e": embedding,
    }
    assert invoice["by_kind_nanousd"] == {
        "realtime": one + 2 * other + embedding,
        "batch": 3 * one // 2,
    }
    # Each charge rounded to micro-dollars: 6.3 and 3.15.
    assert invoice["by_kind"] == {"realtime": 6 + 2 * 150 + 5, "batch": 3 * 3}
    assert invoice["requests"] == 7
    assert invoice["tokens"] == {"input": 6 * 10 + 250, "output": 6 * 8}
    origin = sim.url.removesuffix("/v1")
    assert http.get(f"{origin}/simulator/invoice").json() == sim.invoice()


def test_only_successful_lines_are_charged(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    sim.profile = Profile(models=MODELS, faults=(Fault(scope="line", status=500, every=2),))
    create(client, lines(4))
    clock.advance(10)
    client.batches.list()
    assert sim.invoice()["by_kind"] == {"realtime": 0, "batch": 2 * 3}


def test_an_expired_batch_is_charged_for_its_finished_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    sim.profile = Profile(models=MODELS, batch=BatchProfile(expire_at_fraction=0.5))
    create(client, lines(4))
    clock.advance(90_000)
    client.batches.list()
    assert sim.invoice()["by_kind"] == {"realtime": 0, "batch": 2 * 3}


def test_a_refused_request_costs_nothing(client: OpenAI, sim: Simulator) -> None:
    sim.profile = Profile(models=MODELS, faults=(Fault(status=500),))
    with pytest.raises(openai.InternalServerError):
        client.embeddings.create(model="e", input="a" * 1000)
    assert sim.invoice()["requests"] == 0


def test_a_dropped_response_is_charged(client: OpenAI, sim: Simulator) -> None:
    sim.profile = Profile(models=MODELS, faults=(Fault(drop="after_commit"),))
    with pytest.raises(openai.APIConnectionError):
        client.embeddings.create(model="e", input="a" * 1000)
    assert sim.invoice()["total"] == 5


def test_a_stream_costs_as_much_as_the_plain_answer(client: OpenAI, sim: Simulator) -> None:
    chunks = client.chat.completions.create(
        model="other", messages=[{"role": "user", "content": "question 0"}], stream=True
    )
    assert list(chunks)
    assert sim.invoice()["total"] == 150
