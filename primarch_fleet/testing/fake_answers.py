"""Scripted answers, and the completions that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from primarch_fleet import prices
from primarch_fleet.answers import form_of
from primarch_fleet.contract import Completion, Lane, Receipt
from primarch_fleet.errors import FleetError
from primarch_fleet.prices import Rates
from primarch_fleet.requests import CompletionRequest, Request
from primarch_fleet.testing.fake_bodies import body_with, usage_of
from primarch_fleet.usage import parse_usage

#: A text; an instance of a pydantic class, for structured outputs; the body of OpenAI's response; a
#: completion with its receipt; or an error, as an instance or a class.
Answer = str | BaseModel | Mapping[str, Any] | Completion | FleetError | type[FleetError]
#: One answer for all requests, a list of answers in the order of the requests, or a function.
Answers = Answer | Sequence[Answer] | Callable[[Any], Answer]

#: An answer, with an instance for the class of an error.
Chosen = str | BaseModel | Mapping[str, Any] | FleetError

#: What a request gets if a test does not say.
DEFAULT_TEXT = "This is the default answer of FakeFleet."
#: Dollars per million tokens, unless a catalogue says.
LIST_PRICE = Rates(input="1", output="2")
BATCH_PRICE = LIST_PRICE.scaled(Decimal("0.5"))


def choose(answers: Answers, request: Request, place: int) -> Chosen:
    """Return the answer for a request.

    Args:
        place: How many requests had an answer before.

    Raises:
        IndexError: The list has no more answers.
        TypeError: The answer is of none of the types.
    """
    answer: object = answers
    if callable(answers) and not isinstance(answers, type):
        answer = answers(request)
    elif isinstance(answers, Sequence) and not isinstance(answers, str):
        if place >= len(answers):
            raise IndexError(
                f"answer: the list has {len(answers)} answers, this is one request more"
            )
        answer = answers[place]
    if isinstance(answer, type) and issubclass(answer, FleetError):
        return answer()
    if isinstance(answer, str | BaseModel | Mapping | FleetError):
        return answer
    raise TypeError(
        "answer: pass a text, a pydantic object, a body of OpenAI's API, a Completion or an error "
        f"of primarch_fleet, not a value of type {type(answer).__name__}"
    )


def fake_completion(
    answer: str | BaseModel | Mapping[str, Any] = DEFAULT_TEXT,
    request: Request | None = None,
    *,
    lane: Lane = "realtime",
    **receipt: Any,
) -> Completion:
    """Return a completion with a plausible receipt.

    Args:
        answer: The text, an instance of a pydantic class, or the body of OpenAI's response.
        request: What it answers; by default a short chat.
        lane: The lane of the receipt.
        **receipt: Fields of `Receipt` that replace the plausible ones, such as `provider="azure"`.
    """
    if request is None:
        hello = [{"role": "user", "content": "Hello"}]
        request = CompletionRequest(model="fake", messages=hello)
    price = BATCH_PRICE if lane == "batch" else LIST_PRICE
    return completion_at((price, LIST_PRICE), answer, request, {"lane": lane} | receipt)


def completion_at(
    rates: tuple[Rates, Rates],
    answer: str | BaseModel | Mapping[str, Any],
    request: Request,
    receipt: Mapping[str, Any],
) -> Completion:
    """Return a completion.

    Args:
        rates: The price and the list price.
        answer: As `fake_completion` takes it.
        request: What it answers.
        receipt: Fields of the receipt, at least its lane.
    """
    body = dict(answer) if isinstance(answer, Mapping) else body_with(request, _text(answer))
    usage = parse_usage(body.get("usage")) or usage_of(request, form_of(body).text(body))
    cost, list_cost = (prices.cost_nanousd(one, usage) for one in rates)
    fields: dict[str, Any] = {
        "reason": "asked for",
        "requested_model": request.model,
        "model": request.model,
        "provider": "fake",
        "deployment": "fake",
        "strategy": "fake",
        "simulated": True,
        "queue_wait": 0.0,
        "time_to_first_token": 0.0 if request.streams else None,
        "latency": 0.0,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usage": usage,
        "cost_nanousd": cost,
        "list_cost_nanousd": list_cost,
        "batch_id": "batch_fake" if receipt["lane"] == "batch" else None,
        "trace_id": "fake",
        "tenant_id": request.tenant_id,
        "user_id": request.user_id,
        "metadata": request.metadata,
    }
    return Completion(body=body, receipt=Receipt(**fields | dict(receipt)))


def _text(answer: str | BaseModel) -> str:
    return answer if isinstance(answer, str) else answer.model_dump_json()
