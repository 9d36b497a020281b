"""Which deployments of a model LiteLLM's Router may choose for a call, and with which weights.

LiteLLM asks before it applies its strategy, and leaves out those in a cooldown first. Each
step here leaves all deployments in rather than none, so a step alone never refuses a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from config.fleet import FleetConfig
from config.provider import Deployment
from config.routing import MeasuredWeights
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request
from workers.realtime.measurements import Calls

#: A deployment as the Router lists it.
Listed = Mapping[str, Any]
#: A measured weight is at least this share of the best one, so that each deployment is measured.
MIN_WEIGHT_SHARE = 0.05
#: Fewer calls than this are no measurement.
MIN_CALLS = 5


class Observed(Protocol):
    """What is known of the deployments at this moment, by their ids."""

    @property
    def calls(self) -> Mapping[str, Calls]:
        """The measured calls."""

    @property
    def unhealthy(self) -> set[str]:
        """The deployments whose last health checks failed."""

    @property
    def probe_seconds(self) -> Mapping[str, float]:
        """The time of the last successful health check."""


class DeploymentChoice:
    """The choice among the deployments of one Router."""

    def __init__(self, config: FleetConfig, observed: Observed) -> None:
        self._deployments = {deployment.id: deployment for deployment in config.deployments}
        self._prices = {
            deployment.id: float(config.rates(deployment).base.input)
            for deployment in config.deployments
        }
        self._weights, self._observed = config.routing.measured_weights, observed
        self._nearest_region = config.routing.nearest_region
        self._lengths_differ = {
            model
            for model in {deployment.model for deployment in config.deployments}
            if _differ(config.deployments_of(model))
        }

    def begin(self, request: Request) -> None:
        """Apply to the calls of the current asyncio task, which serve this request."""
        CURRENT.set((self, request))

    def candidates(
        self, request: Request, model: str, listed: Sequence[Listed], tried: Iterable[str]
    ) -> Sequence[Listed]:
        """Return the deployments that the next call for a request may go to.

        Args:
            model: The model that is called: the requested one or a fallback.
            listed: The Router's deployments of it, without those in a cooldown.
            tried: Ids of those that have failed for this request.
        """
        if len(listed) < 2:
            return listed
        left_out = {*tried}
        candidates = _keep(listed, lambda id_: id_ not in left_out)
        candidates = _keep(candidates, lambda id_: id_ not in self._observed.unhealthy)
        if model in self._lengths_differ:
            candidates = self._long_enough(candidates, request.prompt_size())
        if self._nearest_region:
            candidates = self._nearest(candidates)
        return self._weighted(candidates, self._weights) if self._weights else candidates

    def _long_enough(self, listed: Sequence[Listed], prompt: PromptSize) -> Sequence[Listed]:
        """Those that take the prompt, by estimate."""

        def fits(id_: str) -> bool:
            deployment = self._deployments[id_]
            length = deployment.context_length
            return length is None or prompt.expected(deployment.media).total <= length

        return _keep(listed, fits)

    def _nearest(self, listed: Sequence[Listed]) -> Sequence[Listed]:
        """Those in the region with the fastest deployment; one without a measurement is tried."""
        seconds = {_id(entry): self._seconds(_id(entry)) for entry in listed}
        nearest = min(seconds, key=lambda id_: seconds[id_] or 0.0)
        region = self._deployments[nearest].region
        return _keep(listed, lambda id_: self._deployments[id_].region == region)

    def _weighted(self, listed: Sequence[Listed], powers: MeasuredWeights) -> Sequence[Listed]:
        """Copies with weights that follow the measurements, for `simple-shuffle`."""
        ids = [_id(entry) for entry in listed]
        weights = dict(zip(ids, self._measured_weights(ids, powers), strict=True))
        return [
            {**entry, "litellm_params": {**entry["litellm_params"], "weight": weights[_id(entry)]}}
            for entry in listed
        ]

    def _measured_weights(self, ids: list[str], powers: MeasuredWeights) -> list[float]:
        seconds = _relative([self._seconds(id_) for id_ in ids])
        prices = _relative([self._prices[id_] or None for id_ in ids])
        failures = [self._calls(id_).failure_rate() for id_ in ids]
        scores = [
            time**-powers.latency * (1 - failed) ** powers.failures * price**-powers.price
            for time, failed, price in zip(seconds, failures, prices, strict=True)
        ]
        least = max(scores) * MIN_WEIGHT_SHARE
        configured = [self._deployments[id_].litellm_params.weight for id_ in ids]
        return [
            max(score, least) * (1 if weight is None else weight)
            for score, weight in zip(scores, configured, strict=True)
        ]

    def _calls(self, id_: str) -> Calls:
        calls = self._observed.calls.get(id_, Calls())
        return calls if calls.count >= MIN_CALLS else Calls()

    def _seconds(self, id_: str) -> float | None:
        """The measured time of a call; of a health check, if there were too few calls."""
        return self._calls(id_).latency_seconds() or self._observed.probe_seconds.get(id_)


#: The choice that applies to the current asyncio task, and the request that the task serves.
CURRENT: ContextVar[tuple[DeploymentChoice, Request] | None] = ContextVar("choice", default=None)


def _id(entry: Listed) -> str:
    return str(entry["model_info"]["id"])


def _keep(listed: Sequence[Listed], wanted: Callable[[str], bool]) -> Sequence[Listed]:
    """The wanted deployments; all if none is wanted."""
    return [entry for entry in listed if wanted(_id(entry))] or listed


def _relative(values: list[float | None]) -> list[float]:
    """The values as multiples of the least; 1 for a value that is not known."""
    least = min((value for value in values if value), default=1.0)
    return [(value or least) / least for value in values]


def _differ(deployments: Iterable[Deployment]) -> bool:
    return len({deployment.context_length for deployment in deployments}) > 1
