"""Choosing a lane, as a pure function: the request, what the fleet offers, and the time."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from primarch_fleet.catalogue import Catalogue, Limits, Model
from primarch_fleet.contract import CompletionRequest, Lane, Request
from primarch_fleet.errors import CostCapExceeded, DeadlineExceeded, InvalidRequest
from primarch_fleet.lane_assessment import LaneAssessment
from primarch_fleet.lane_health import LaneHealth

#: Bytes of JSON a prompt token takes at least, on average over English text (an estimate, used
#: for the caps of one request): https://platform.openai.com/tokenizer says four characters.
BYTES_PER_TOKEN = 4


class LaneChoice(NamedTuple):
    """A lane and why it was chosen."""

    lane: Lane
    reason: str


def choose_lane(
    request: Request, catalogue: Catalogue, now: datetime, health: LaneHealth | None = None
) -> LaneChoice:
    """The lane for a request, and the reason that its receipt will show.

    With the lanes' health, one that is full, that no worker serves, or whose queue takes longer
    than the request can wait, is passed over for another that can serve it; the reason says so. Of
    lanes that all are slow or without a worker the least bad is taken, and a lane that the request
    names whatever its state: its queue keeps the request, unless the fleet's policy is to refuse.

    Raises InvalidRequest (UnknownModel included) when no lane can serve it, DeadlineExceeded when
    its deadline has passed at `now`, and LaneFull or LaneUnavailable when every lane that could
    serve it is closed: the one of the lane that it wants most.
    """
    left = request.time_left(now)
    if left is not None and left <= 0:
        raise DeadlineExceeded("deadline: it has already passed")
    model = catalogue.model(request.model)
    if model.kind != request.kind:
        raise InvalidRequest(f"model: {request.model!r} is a model for {model.kind}")
    _check_tags(request, model, catalogue)
    patience = _patience(request, left)
    outlook = LaneAssessment(model, catalogue, health or LaneHealth(), patience, request.priority)
    if request.lane == "auto":
        return _healthiest(_suitable(request, outlook), outlook)
    choice = _asked_for(request, model, request.lane)
    if refusal := outlook.problem(choice.lane).refusal:
        raise refusal
    return choice


def over_budget_lane(
    request: Request, catalogue: Catalogue, now: datetime, health: LaneHealth | None = None
) -> LaneChoice | None:
    """The lane on which its tenant has a request served for which the budget has no room.

    None when it is refused then: by the policy, because the request names its lane, or because the
    other lane cannot serve it or is closed.
    """
    limits = catalogue.limits(request.tenant_id)
    if limits is None or limits.over_budget == "refuse" or request.lane != "auto":
        return None
    lane, model = limits.over_budget, catalogue.model(request.model)
    patience = _patience(request, request.time_left(now))
    outlook = LaneAssessment(model, catalogue, health or LaneHealth(), patience)
    if lane not in _offers(request, outlook) or outlook.problem(lane).refusal:
        return None
    return LaneChoice(lane, f"over budget: degraded to {lane}")


def promote_at(request: Request, catalogue: Catalogue, now: datetime) -> float | None:
    """The Unix time by which a request for the local lane is to be served on realtime, if it must.

    None for one that has all the time, that names its lane, or that realtime cannot serve.
    """
    patience, model = _patience(request, request.time_left(now)), catalogue.model(request.model)
    outlook = LaneAssessment(model, catalogue, LaneHealth(), patience)
    if request.lane != "auto" or "realtime" not in _offers(request, outlook):
        return None
    return now.timestamp() + patience if patience < float("inf") else None


def check_cost(
    request: Request, price: int, lane: Lane | None = None, limits: Limits | None = None
) -> None:
    """Raises CostCapExceeded when the estimate, in micro-dollars, is over the request's own cap, or
    over the one that its tenant has for a request on the lane.
    """
    tenants = limits.max_cost_realtime if limits and lane == "realtime" else None
    for name, cap in {"max_cost": request.max_cost, "max_cost_realtime": tenants}.items():
        if cap is not None and price > cap:
            raise CostCapExceeded(
                f"{name}: about {price} micro-dollars are expected, the cap is {cap}"
            )


def _ruled_out(request: Request) -> dict[Lane, str]:
    """The lanes that cannot honour a field of the request, and what to tell who asks for them."""
    lanes: dict[Lane, str] = {}
    for field in ("tags", "routing_strategy"):
        if getattr(request, field):
            lanes["local"] = lanes["batch"] = f"{field}: only the realtime lane goes by it"
    if not isinstance(request, CompletionRequest):
        return lanes
    if request.stream:
        lanes["batch"] = "stream: a batch cannot stream"
    if request.stream and (request.n or 1) > 1:
        lanes["realtime"] = "n: a stream has one choice on the realtime lane"
    if request.service_tier:
        lanes["local"] = "service_tier: own hardware has none; leave it out or choose another lane"
    return lanes


def _check_tags(request: Request, model: Model, catalogue: Catalogue) -> None:
    """Raises InvalidRequest for tags that nobody goes by, or that no deployment has."""
    if not request.tags or "realtime" not in model.lanes:
        return
    if not catalogue.tag_filtering:
        raise InvalidRequest("tags: this fleet does not go by them (enable_tag_filtering)")
    known = model.lanes["realtime"].tags
    if known is not None and not any(set(one).issuperset(request.tags) for one in known):
        have = " or ".join(f"[{', '.join(one)}]" for one in known)
        raise InvalidRequest(
            f"tags: no deployment of {request.model!r} has all of these; they have {have}"
        )


def _asked_for(request: Request, model: Model, lane: Lane) -> LaneChoice:
    if why := _ruled_out(request).get(lane):
        raise InvalidRequest(why)
    if lane not in model.lanes:
        offers = " and ".join(model.lanes)
        raise InvalidRequest(f"lane: {request.model!r} is not served on {lane}, only on {offers}")
    if model.lanes[lane].quality < request.quality:
        raise InvalidRequest(f"quality: {request.model!r} on {lane} does not reach it")
    return LaneChoice(lane, "asked for")


def _suitable(request: Request, outlook: LaneAssessment) -> list[LaneChoice]:
    """The lanes that can serve a request, in the order in which it wants them; one at least."""
    offers = _offers(request, outlook)
    if not outlook.catalogue.auto_batch:
        offers.discard("batch")
    if choices := [one for one in _preferences(request) if one.lane in offers]:
        return choices
    why = f"model: no lane serves {request.model!r} within the quality and time asked for"
    raise InvalidRequest("; ".join([why, *_ruled_out(request).values()]))


def _healthiest(choices: list[LaneChoice], outlook: LaneAssessment) -> LaneChoice:
    """The first of those with which the least is wrong. Raises why it is closed, if it is."""
    troubles = {one: outlook.problem(one.lane) for one in choices}
    best = min(choices, key=lambda one: troubles[one].severity)
    if refusal := troubles[best].refusal:
        raise refusal
    up_to_it = choices[: choices.index(best) + 1]
    wrong = [f"{one.lane} is {what}" for one in up_to_it if (what := troubles[one].description)]
    return LaneChoice(best.lane, "; ".join([best.reason, *wrong]))


def _offers(request: Request, outlook: LaneAssessment) -> set[Lane]:
    """The lanes that can serve a request within its quality and time."""
    lanes = outlook.model.lanes
    offers = {lane for lane, offer in lanes.items() if offer.quality >= request.quality}
    if outlook.max_wait_seconds < outlook.catalogue.completion_window:
        offers.discard("batch")
    return offers - set(_ruled_out(request))


def _preferences(request: Request) -> list[LaneChoice]:
    """The lanes in the order in which this request wants them."""
    realtime = LaneChoice("realtime", "no cheaper lane fits")
    local = LaneChoice("local", "hosted here")
    batch = LaneChoice("batch", "only lane of the model")
    if request.priority == "high" or request.cost_preference == "speed":
        return [LaneChoice("realtime", "urgent"), local, batch]
    if request.cost_preference == "cost":
        return [LaneChoice("batch", "cost-sensitive, patient"), local, realtime]
    return [local, realtime, batch]


def _patience(request: Request, left: float | None) -> float:
    """Seconds that the caller will wait, at most; infinite when nothing was said."""
    limits = (request.max_latency, left)
    return min((limit for limit in limits if limit is not None), default=float("inf"))


def estimate_cost(
    request: Request, size: int, model: Model, lane: Lane, limits: Limits | None = None
) -> int:
    """Micro-dollars expected at most for a request of `size` bytes, if it fills its token limit."""
    tokens = size // BYTES_PER_TOKEN + 1
    return model.lanes[lane].max_price.cost(tokens, _output_tokens(request, model, lane, limits))


def max_cost_of(request: Request, size: int, model: Model, lane: Lane, limits: Limits) -> int:
    """Micro-dollars that are reserved for a request of `size` bytes: the most that it can cost.

    A token of text is a byte at least, in every model's vocabulary. Two things have no bound: a
    picture or a file that the request names by its address, and an answer whose length nothing
    limits, for which the tenant's `default_output_tokens` are reserved.
    """
    output = _output_tokens(request, model, lane, limits)
    return model.lanes[lane].max_price.cost(size, output)


def max_tokens_of(request: Request, size: int, model: Model, lane: Lane, limits: Limits) -> int:
    """Tokens with which a request of `size` bytes counts for its tenant's rate."""
    return size // BYTES_PER_TOKEN + 1 + _output_tokens(request, model, lane, limits)


def _output_tokens(request: Request, model: Model, lane: Lane, limits: Limits | None) -> int:
    """The request's own limit, the model's, or else the one that its tenant is reserved."""
    own = request.max_output_tokens()
    if own is not None or limits is None:
        return own or 0
    of_one = model.lanes[lane].max_output_tokens or limits.default_output_tokens
    return of_one * (getattr(request, "n", None) or 1)
