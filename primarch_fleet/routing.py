"""Lane routing: decide once for each submit where a request goes and what it may cost.

The decision is a pure function of the request, the catalogue, the health of the lanes and the time.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple

from primarch_fleet import estimates, protocol
from primarch_fleet.catalogue import Catalogue, Limits, Model
from primarch_fleet.contract import LANES, Lane
from primarch_fleet.errors import (
    CostCapExceeded,
    DeadlineExceeded,
    InvalidRequest,
)
from primarch_fleet.lane_health import LaneHealth
from primarch_fleet.lane_problems import LaneConditions, Severity
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request
from primarch_fleet.requests.base import FIELD_NAMES
from primarch_fleet.requests.defaults import is_default

#: The service tier at half the price: https://platform.openai.com/docs/guides/flex-processing
FLEX = "flex"
_FOREVER = float("inf")


class LaneDecision(NamedTuple):
    """The lane of a request, and all that depends on the lane."""

    lane: Lane
    #: Why this lane; the receipt repeats it.
    reason: str
    queue: str
    #: The tenant's limits; None for a tenant whose spending is not counted.
    limits: Limits | None
    #: The request's wire form as JSON.
    text: str
    estimate: estimates.Estimate
    #: Unix seconds at which the realtime lane serves the request instead of the local lane, if it
    #: still waits then; None for never.
    promote_at: float | None = None
    #: The decision to use instead if the tenant's budget has no room for this one.
    fallback: LaneDecision | None = None
    #: Hashes of the prompt's prefixes, for the queue of an engine.
    prefixes: tuple[str, ...] = ()
    #: The service tier that the realtime lane asks for first; None for the request's own.
    service_tier: str | None = None


def route(
    request: Request,
    body: dict[str, Any],
    catalogue: Catalogue,
    now: datetime,
    health: LaneHealth | None = None,
) -> LaneDecision:
    """Choose the lane of a request, and estimate its cost there.

    A lane is skipped if another lane can serve the request and this one is full, is paused, has no
    worker, has a longer queue than the request can wait for, or does not take so long a prompt; the
    reason says so. If every lane has such a problem, the least bad one is taken: its queue keeps
    the request. A lane that the request names is taken in any state, unless the lane is closed.

    A batch takes up to its completion window, so no state of the other lanes moves a request to the
    batch lane, unless the request allows so much time: by `cost_preference="cost"`, or by a
    `deadline` or `max_latency` of at least the window.

    Args:
        body: The request's wire form.
        health: The state of the lanes; None if nothing is known.

    Raises:
        InvalidRequest: No lane can serve the request, or a field is wrong. Includes UnknownModel,
            RequestTooLarge, and CostCapExceeded if no fallback lane is cheaper than the cap.
        DeadlineExceeded: The deadline has passed at `now`.
        LaneFull: Every lane that can serve the request is closed, and the preferred one is full.
        LaneUnavailable: Every such lane is closed, and the preferred one has no worker or
            is paused.
    """
    assessment = _Assessment.of(request, body, catalogue, now, health or LaneHealth())
    lane, reason = assessment.choose()
    text = protocol.wire_json(body)
    protocol.check_size(text, catalogue.max_request_bytes)
    fallback = None
    fallback_lane = assessment.fallback_lane()
    if fallback_lane is not None and fallback_lane != lane:
        with suppress(CostCapExceeded):
            degraded = f"over budget: degraded to {fallback_lane}"
            fallback = assessment.decide(fallback_lane, degraded, text)
    try:
        return assessment.decide(lane, reason, text, fallback)
    except CostCapExceeded:
        if fallback is None:
            raise
        return fallback


def longer_lane(
    request: Request, body: dict[str, Any], catalogue: Catalogue, now: datetime, refused_by: Lane
) -> LaneDecision | None:
    """Choose another lane for a request that a lane refuses for its length.

    Args:
        body: The request's wire form.

    Returns:
        None if the request names its lane, or if no other lane can serve it.
    """
    model = catalogue.models.get(request.model)
    if request.lane != "auto" or model is None:
        return None
    lanes = {lane: offer for lane, offer in model.lanes.items() if lane != refused_by}
    others = catalogue.model_copy(
        update={"models": {request.model: model.model_copy(update={"lanes": lanes})}}
    )
    try:
        assessment = _Assessment.of(request, body, others, now, LaneHealth())
        lane, _ = assessment.choose()
        if assessment.conditions.problem(lane).severity is not Severity.OK:
            return None
        return assessment.decide(lane, f"{refused_by} is too short", protocol.wire_json(body))
    except (InvalidRequest, DeadlineExceeded):
        return None


class _Assessment(NamedTuple):
    """A request and the lanes of its model, as they are now."""

    request: Request
    prompt: PromptSize
    model: Model
    limits: Limits | None
    catalogue: Catalogue
    conditions: LaneConditions
    now: datetime
    #: Seconds that the caller will wait at most; infinite without a limit.
    max_wait_seconds: float
    #: Lanes that do not support a field of the request, each with the error message.
    unsupported: dict[Lane, str]
    #: Lanes that can serve the request within its quality and time.
    eligible: set[Lane]

    @classmethod
    def of(
        cls,
        request: Request,
        wire: dict[str, Any],
        catalogue: Catalogue,
        now: datetime,
        health: LaneHealth,
    ) -> _Assessment:
        """Raises DeadlineExceeded and InvalidRequest, as `route` does."""
        seconds_left = request.time_left(now)
        if seconds_left is not None and seconds_left <= 0:
            raise DeadlineExceeded("deadline: it has already passed")
        model = catalogue.model(request.model)
        if model.kind not in request.kinds:
            raise InvalidRequest(f"model: {request.model!r} is a model for {model.kind}")
        _check_tags(request, model, catalogue)
        _check_headers(request, catalogue)
        max_wait_seconds = min(request.max_latency or _FOREVER, seconds_left or _FOREVER)
        body = request.body(wire)
        unsupported = _unsupported(request, body, model, catalogue) | request.unsupported()
        eligible = {
            lane
            for lane, offer in model.lanes.items()
            if offer.quality >= request.quality and lane not in unsupported
        }
        if max_wait_seconds < catalogue.completion_window:
            eligible.discard("batch")
        prompt = request.prompt_size(body)
        return cls(
            request=request,
            prompt=prompt,
            model=model,
            limits=catalogue.limits(request.tenant_id),
            catalogue=catalogue,
            conditions=LaneConditions(request, prompt, model, catalogue, health, max_wait_seconds),
            now=now,
            max_wait_seconds=max_wait_seconds,
            unsupported=unsupported,
            eligible=eligible,
        )

    def choose(self) -> tuple[Lane, str]:
        """The lane and the reason. Raises InvalidRequest, LaneFull and LaneUnavailable."""
        if self.request.lane != "auto":
            return self._named_lane(self.request.lane), "asked for"
        preferences = _preferences(self.request)
        choices = self._choices(preferences)
        if not choices:
            # One reason for all lanes: it is about the request, not about its lanes.
            reasons = list(dict.fromkeys(self.unsupported.values()))
            if len(reasons) != 1 or len(self.unsupported) < len(LANES):
                served = f"no lane serves {self.request.model!r}"
                reasons.insert(0, f"model: {served} within the requested quality and time")
            raise InvalidRequest("; ".join(reasons))
        problems = {lane: self.conditions.problem(lane) for lane in choices}
        best = min(choices, key=lambda lane: problems[lane].severity)
        if refusal := problems[best].refusal:
            raise refusal
        considered = list(choices)[: list(choices).index(best) + 1]
        flaws = [f"{lane} is {why}" for lane in considered if (why := problems[lane].description)]
        reason = choices[best]
        if best == "realtime" and self._may_use_flex():
            reason = "cost-sensitive, can wait: flex tier"
        return best, "; ".join([reason, *self._passed_over(best, preferences), *flaws])

    def _choices(self, preferences: dict[Lane, str]) -> dict[Lane, str]:
        """The lanes that may serve the request, in the order of preference, each with the reason.

        The batch lane is among them if the request allows its time, or if no other lane can ever
        serve the request.
        """
        choices = {
            lane: reason
            for lane, reason in preferences.items()
            if lane in self.eligible and (lane != "batch" or self.catalogue.auto_batch)
        }
        prefers_batch = next(iter(preferences)) == "batch"
        allows_batch_time = prefers_batch or self.max_wait_seconds < _FOREVER
        sooner = choices.keys() - {"batch"}
        if not allows_batch_time and any(map(self.conditions.takes_prompt, sooner)):
            choices.pop("batch", None)
        return choices

    def _passed_over(self, best: Lane, preferences: dict[Lane, str]) -> list[str]:
        """Why the lanes before the best that serve the model cannot serve this request."""
        return [
            f"not {lane}: {self.unsupported[lane]}"
            for lane in takewhile(lambda lane: lane != best, preferences)
            if lane in self.model.lanes and lane in self.unsupported
        ]

    def fallback_lane(self) -> Lane | None:
        """The lane where the tenant's policy moves a request that its budget has no room for.

        None if the request is refused instead: by the policy, because the request names its lane,
        or because the policy's lane cannot serve it or is closed.
        """
        if self.limits is None or self.request.lane != "auto":
            return None
        lane = self.limits.over_budget
        if lane == "refuse" or lane not in self.eligible or self.conditions.problem(lane).refusal:
            return None
        return lane

    def decide(
        self, lane: Lane, reason: str, text: str, fallback: LaneDecision | None = None
    ) -> LaneDecision:
        """Raises CostCapExceeded."""
        estimate = estimates.estimate(self.request, self.prompt, self.model, lane, self.limits)
        estimates.check_cost(estimate, self.limits)
        promote_at = None
        may_promote = self.request.lane == "auto" and "realtime" in self.eligible
        if lane == "local" and may_promote and self.max_wait_seconds < _FOREVER:
            promote_at = self.now.timestamp() + self.max_wait_seconds
        queue = self.model.lanes[lane].queue
        prefixes: list[str] = []
        if lane == "local":
            prefixes = self.request.prefixes(shared=self.catalogue.share_prefix_cache)
        return LaneDecision(
            *(lane, reason, queue, self.limits, text, estimate, promote_at, fallback),
            prefixes=tuple(prefixes),
            service_tier=FLEX if lane == "realtime" and self._may_use_flex() else None,
        )

    def _may_use_flex(self) -> bool:
        """Whether the fleet may ask for the flex tier: it is half the price, and takes minutes."""
        request, wanted_seconds = self.request, self.catalogue.flex_seconds
        return (
            request.lane == "auto"
            and request.cost_preference == "cost"
            and request.priority != "high"
            and getattr(request, "service_tier", None) is None
            and wanted_seconds is not None
            and self.max_wait_seconds >= wanted_seconds
            and FLEX in self.model.lanes["realtime"].price.tiers
        )

    def _named_lane(self, lane: Lane) -> Lane:
        model, offer = self.request.model, self.model.lanes.get(lane)
        if why := self.unsupported.get(lane):
            raise InvalidRequest(why)
        if offer is None:
            offered = " and ".join(self.model.lanes)
            raise InvalidRequest(f"lane: {model!r} is not served on {lane}, only on {offered}")
        if offer.quality < self.request.quality:
            raise InvalidRequest(
                f"quality: {model!r} on {lane} has {offer.quality}, less than requested"
            )
        if refusal := self.conditions.problem(lane).refusal:
            raise refusal
        return lane


def _unsupported(
    request: Request, body: dict[str, Any], model: Model, catalogue: Catalogue
) -> dict[Lane, str]:
    """The lanes that do not support a parameter of the body, each with the error message."""
    refused: dict[Lane, Collection[str]] = {
        lane: [name for name in body.keys() & offer.unsupported if not is_default(name, body[name])]
        for lane, offer in model.lanes.items()
    }
    if known := catalogue.engine_parameters.get(request.endpoint):
        refused["local"] = body.keys() - known
    without = {
        lane: f"lane: {request.model!r} has no {request.endpoint} on the {lane} lane"
        for lane, offer in model.lanes.items()
        if offer.endpoints is not None and request.endpoint not in offer.endpoints
    }
    return without | {
        lane: f"{', '.join(sorted(FIELD_NAMES.get(name, name) for name in names))}: "
        f"the {lane} lane does not support it for {request.model!r}"
        for lane, names in refused.items()
        if names
    }


def _check_headers(request: Request, catalogue: Catalogue) -> None:
    """Raises InvalidRequest for headers that fleet.yaml does not allow."""
    if not request.extra_headers:
        return
    names = {name.lower() for name in request.extra_headers}
    if refused := sorted(names - set(catalogue.extra_headers)):
        allowed = ", ".join(catalogue.extra_headers) or "none"
        raise InvalidRequest(
            f"extra_headers: {', '.join(refused)}: not allowed; fleet.yaml allows {allowed}"
        )


def _check_tags(request: Request, model: Model, catalogue: Catalogue) -> None:
    """Raises InvalidRequest for tags that the fleet ignores, or that no deployment has."""
    if not request.tags or "realtime" not in model.lanes:
        return
    if not catalogue.tag_filtering:
        raise InvalidRequest("tags: not supported; set routing.enable_tag_filtering: true")
    known = model.lanes["realtime"].tags
    if known is not None and not any(set(tags).issuperset(request.tags) for tags in known):
        available = " or ".join(f"[{', '.join(tags)}]" for tags in known)
        raise InvalidRequest(
            f"tags: no deployment of {request.model!r} has all of these; they have {available}"
        )


def _preferences(request: Request) -> dict[Lane, str]:
    """The lanes in the order in which the request prefers them, each with the reason."""
    local, realtime, batch = "hosted here", "no cheaper lane fits", "only lane of the model"
    if request.priority == "high" or request.cost_preference == "speed":
        return {"realtime": "urgent", "local": local, "batch": batch}
    if request.cost_preference == "cost":
        return {"batch": "cost-sensitive, patient", "local": local, "realtime": realtime}
    return {"local": local, "realtime": realtime, "batch": batch}
