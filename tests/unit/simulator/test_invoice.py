"""Money, to the micro-dollar."""

from decimal import Decimal
from fractions import Fraction

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from tests.unit.simulator.batch_file import create, lines
from tests.unit.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.invoice import cost
from workers.onebox.simulator.profile import BatchProfile, Fault, Model
from workers.onebox.simulator.tokens import Usage

# A request of `lines` counts 3 + 4 + ceil(10/4) tokens, its answer ceil(31/4).
LINE = Usage(10, 8)


@pytest.mark.parametrize(
    ("tokens", "price", "realtime", "batch"),
    [
        (10, "0.15", 2, 1),  # 1.5 and 0.75
        (3, "0.15", 0, 0),  # 0.45 and 0.225
        (1, "0.5", 1, 0),  # half is rounded up, a quarter down
        (1, "1", 1, 1),
        (1_000_000, "0.15", 150_000, 75_000),
    ],
)
def test_a_request_costs_its_tokens_rounded_half_up(
    tokens: int, price: str, realtime: int, batch: int
) -> None:
    prices = Model(input=price, output=0)
    assert cost(Usage(tokens, 5), prices, "realtime") == realtime
    assert cost(Usage(tokens, 5), prices, "batch") == batch


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.decimals(0, 1000, places=4),
    st.decimals(0, 1000, places=4),
)
def test_cost_is_exact(inputs: int, outputs: int, price: Decimal, other: Decimal) -> None:
    exact = (inputs * Fraction(price) + outputs * Fraction(other)) / 2
    rounded = (exact + Fraction(1, 2)).__floor__()
    assert cost(Usage(inputs, outputs), Model(input=price, output=other), "batch") == rounded


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
    one = cost(LINE, MODELS["m"], "realtime")
    half = cost(LINE, MODELS["m"], "batch")
    other = LINE.input_tokens * 3 + LINE.output_tokens * 15
    assert (one, half, other) == (6, 3, 150)  # 6.3 and 3.15
    embedding = 5  # 250 * 0.02
    assert sim.invoice() == {
        "total": one + 3 * half + 2 * other + embedding,
        "by_model": {"m": one + 3 * half, "other": 2 * other, "e": embedding},
        "by_kind": {"realtime": one + 2 * other + embedding, "batch": 3 * half},
        "requests": 7,
    }
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
