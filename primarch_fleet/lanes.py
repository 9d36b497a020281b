"""Choosing a lane, as a pure function: the request, what the fleet offers, and the time."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from primarch_fleet.catalogue import Catalogue, Model
from primarch_fleet.contract import CompletionRequest, Lane, Request
from primarch_fleet.errors import CostCapExceeded, DeadlineExceeded, InvalidRequest

#: Bytes of JSON a prompt token takes at least, on average over English text (an estimate, used
#: only for max_cost): https://platform.openai.com/tokenizer says four characters.
BYTES_PER_TOKEN = 4


class Choice(NamedTuple):
    """A lane and why it was chosen."""

    lane: Lane
    reason: str


def choose(request: Request, catalogue: Catalogue, now: datetime) -> Choice:
    """The lane for a request, and the reason that its receipt will show.

    Raises InvalidRequest (UnknownModel included) when no lane can serve it and DeadlineExceeded
    when its deadline has passed at `now`.
    """
    left = request.time_left(now)
    if left is not None and left <= 0:
        raise DeadlineExceeded("deadline: it has already passed")
    model = catalogue.model(request.model)
    if model.kind != request.kind:
        raise InvalidRequest(f"model: {request.model!r} is a model for {model.kind}")
    if request.lane != "auto":
        return _asked_for(request, model, request.lane)
    return _best(request, model, catalogue, _patience(request, left))


def check_cost(request: Request, price: int) -> None:
    """Raises CostCapExceeded when the estimate, in micro-dollars, is over the request's cap."""
    if request.max_cost is not None and price > request.max_cost:
        raise CostCapExceeded(
            f"max_cost: about {price} micro-dollars are expected, the cap is {request.max_cost}"
        )


def _ruled_out(request: Request) -> dict[Lane, str]:
    """The lanes that cannot honour a field of the request, and what to tell who asks for them."""
    if not isinstance(request, CompletionRequest):
        return {}
    lanes: dict[Lane, str] = {}
    if request.stream:
        lanes["batch"] = "stream: a batch cannot stream"
    if request.stream and (request.n or 1) > 1:
        lanes["realtime"] = "n: a stream has one choice on the realtime lane"
    if request.service_tier:
        lanes["local"] = "service_tier: own hardware has none; leave it out or choose another lane"
    return lanes


def _asked_for(request: Request, model: Model, lane: Lane) -> Choice:
    if why := _ruled_out(request).get(lane):
        raise InvalidRequest(why)
    if lane not in model.lanes:
        offers = " and ".join(model.lanes)
        raise InvalidRequest(f"lane: {request.model!r} is not served on {lane}, only on {offers}")
    if model.lanes[lane].quality < request.quality:
        raise InvalidRequest(f"quality: {request.model!r} on {lane} does not reach it")
    return Choice(lane, "asked for")


def _best(request: Request, model: Model, catalogue: Catalogue, patience: float) -> Choice:
    offers = {lane for lane, offer in model.lanes.items() if offer.quality >= request.quality}
    offers -= set(_ruled_out(request))
    if patience < catalogue.completion_window:
        offers.discard("batch")
    for choice in _preferences(request):
        if choice.lane in offers:
            return choice
    why = f"model: no lane serves {request.model!r} within the quality and time asked for"
    raise InvalidRequest("; ".join([why, *_ruled_out(request).values()]))


def _preferences(request: Request) -> list[Choice]:
    """The lanes in the order in which this request wants them."""
    realtime = Choice("realtime", "no cheaper lane fits")
    local = Choice("local", "hosted here")
    batch = Choice("batch", "only lane of the model")
    if request.priority == "high" or request.cost_preference == "speed":
        return [Choice("realtime", "urgent"), local, batch]
    if request.cost_preference == "cost":
        return [Choice("batch", "cost-sensitive, patient"), local, realtime]
    return [local, realtime, batch]


def _patience(request: Request, left: float | None) -> float:
    """Seconds that the caller will wait, at most; infinite when nothing was said."""
    limits = (request.max_latency, left)
    return min((limit for limit in limits if limit is not None), default=float("inf"))


def estimate_cost(request: Request, size: int, model: Model, lane: Lane) -> int:
    """Micro-dollars expected at most for a request of `size` bytes, if it fills its token limit."""
    return model.lanes[lane].price.cost(
        size // BYTES_PER_TOKEN + 1, request.max_output_tokens() or 0
    )
