"""The `routing_orchestration` section of fleet.yaml: the fleet's policy in one place.

The names are those of the Primarch agents' production configuration. The section may be left out,
and so may each of its keys; `Orchestration.over` says what each one becomes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from config.section import Section
from config.tenants import Dollars
from primarch_fleet.contract import RoutingStrategy

#: As YAML has it, and amounts of money.
Values = dict[str, Any]


class LitellmRouter(Section):
    """The realtime lane."""

    #: Of requests that name none. LiteLLM deprecates "usage-based-routing": it is taken for its
    #: second version (https://docs.litellm.ai/docs/routing).
    routing_strategy: RoutingStrategy | Literal["usage-based-routing"] | None = None
    #: False: a model's own deployments answer, or nobody; all three tables of fallbacks are void.
    enable_fallbacks: bool | None = None
    #: False: a deployment that fails is asked again at once.
    enable_circuit_breakers: bool | None = None
    #: False: what a process learns of deployments (cooldowns, usage) stays with it. Answers are
    #: cached neither way.
    redis_caching: bool | None = None


class VllmOptimization(Section):
    """Every engine of the local lane. What an engine says of itself goes before it."""

    tensor_parallel_size: int | None = Field(None, gt=0)
    #: Requests that are computed at the same time: vLLM's max_num_seqs.
    max_batch_size: int | None = Field(None, gt=0)
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)


class BatchProcessing(Section):
    """The batch lane."""

    #: Requests in a batch, at most.
    max_batch_size: int | None = Field(None, gt=0, le=50_000)
    default_completion_window: str | None = Field(None, pattern=r"^[1-9][0-9]*[hd]$")
    #: False: no request goes to the batch lane to save money; one that names it does.
    enable_cost_optimization: bool | None = None


class CostOptimization(Section):
    """What is saved, and what is not too dear."""

    #: A target: the share of the list price that the fleet saves.
    target_cost_reduction: float | None = Field(None, ge=0, le=1)
    #: Fewer requests than this are not worth a batch for a deadline's sake.
    batch_threshold_requests: int | None = Field(None, gt=0)
    #: The most that one request may cost on the realtime lane, of tenants that are not named.
    realtime_cost_limit_usd: Dollars | None = None


class LatencyTargets(Section):
    """In milliseconds and hours."""

    realtime_p95_ms: float | None = Field(None, gt=0)
    batch_completion_hours: float | None = Field(None, gt=0)
    local_inference_p95_ms: float | None = Field(None, gt=0)


class CostTargets(Section):
    """In dollars."""

    #: A target of the fleet, and the budget of each tenant that is not named.
    monthly_budget_usd: Dollars | None = None
    cost_per_request_target: Dollars | None = None


class PerformanceMonitoring(Section):
    """Targets alone, but for the budget."""

    latency_targets: LatencyTargets = LatencyTargets()
    cost_targets: CostTargets = CostTargets()


class Orchestration(Section):
    """What holds for the whole fleet, over what fleet.yaml says elsewhere."""

    litellm_router: LitellmRouter = LitellmRouter()
    vllm_optimization: VllmOptimization = VllmOptimization()
    batch_processing: BatchProcessing = BatchProcessing()
    cost_optimization: CostOptimization = CostOptimization()
    performance_monitoring: PerformanceMonitoring = PerformanceMonitoring()

    def over(self, file: Values) -> Values:
        """fleet.yaml with this section's keys in their places, and without the section.

        Its keys win over the file's, but for engines and tenants: theirs are of one, these of all.
        """
        rest = {name: value for name, value in file.items() if name != "routing_orchestration"}
        engines = [_merged(self._of_engines(), engine) for engine in rest.get("engines") or ()]
        return _merged(rest, self._of_sections()) | {"engines": engines}

    def _of_engines(self) -> Values:
        vllm = self.vllm_optimization
        return _said(
            {
                "tensor_parallel_size": vllm.tensor_parallel_size,
                "max_num_seqs": vllm.max_batch_size,
                "enable_prefix_caching": vllm.enable_prefix_caching,
                "gpu_memory_utilization": vllm.gpu_memory_utilization,
            }
        )

    def _of_sections(self) -> Values:
        batch, cost = self.batch_processing, self.cost_optimization
        costs = self.performance_monitoring.cost_targets
        return _said(
            {
                "routing": self._routing(),
                "batch": {
                    "max_requests": batch.max_batch_size,
                    "completion_window": batch.default_completion_window,
                    "auto": batch.enable_cost_optimization,
                    "min_requests": cost.batch_threshold_requests,
                },
                "tenants": {
                    "default": {
                        "monthly_budget": costs.monthly_budget_usd,
                        "max_cost_realtime": cost.realtime_cost_limit_usd,
                    }
                },
                "targets": self._targets(),
            }
        )

    def _routing(self) -> Values:
        router = self.litellm_router
        named = router.routing_strategy
        breakers = router.enable_circuit_breakers
        return {
            "routing_strategy": "usage-based-routing-v2"
            if named == "usage-based-routing"
            else named,
            "enable_fallbacks": router.enable_fallbacks,
            "disable_cooldowns": None if breakers is None else not breakers,
            "shared_state": router.redis_caching,
        }

    def _targets(self) -> Values:
        latency = self.performance_monitoring.latency_targets
        costs = self.performance_monitoring.cost_targets
        return {
            "realtime_p95_seconds": _times(latency.realtime_p95_ms, 1 / 1000),
            "local_p95_seconds": _times(latency.local_inference_p95_ms, 1 / 1000),
            "batch_completion_seconds": _times(latency.batch_completion_hours, 3600),
            "cost_reduction": self.cost_optimization.target_cost_reduction,
            "monthly_cost_usd": costs.monthly_budget_usd,
            "cost_per_request_usd": costs.cost_per_request_target,
        }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _said(values: Values) -> Values:
    """Without the keys that were left out."""
    nested = {k: _said(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {key: value for key, value in nested.items() if value not in (None, {})}


def _merged(below: Values, above: Values) -> Values:
    """Both, key by key; where both have one `above` wins."""
    both: Values = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _merged(below[key], above[key])
    return both
