"""The `routing_orchestration` section of fleet.yaml: the fleet's policy in one place.

Its keys have the names of the Primarch agents' production configuration. The section and each of
its keys may be left out. `RoutingOrchestration.apply_to` says what each key becomes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from config.section import Section, Values, merge
from config.tenants import Dollars
from primarch_fleet.requests import RoutingStrategy


class LitellmRouter(Section):
    """The realtime lane."""

    #: Overrides `routing.routing_strategy`. "usage-based-routing", which LiteLLM deprecates, means
    #: its second version (https://docs.litellm.ai/docs/routing).
    routing_strategy: RoutingStrategy | Literal["usage-based-routing"] | None = None
    #: False: all three tables of fallbacks are ignored; only a model's own deployments answer.
    enable_fallbacks: bool | None = None
    #: False: no deployment is ever cooled down after failures.
    enable_circuit_breakers: bool | None = None
    #: False: processes do not share cooldowns and usage. Answers are cached in neither case.
    redis_caching: bool | None = None


class VllmOptimization(Section):
    """Every engine of the local lane. An engine's own keys override these."""

    #: GPUs that share each layer of the model.
    tensor_parallel_size: int | None = Field(None, gt=0)
    #: Requests that are computed at the same time: vLLM's max_num_seqs.
    max_batch_size: int | None = Field(None, gt=0)
    #: Reuse the computed state of common prefixes.
    enable_prefix_caching: bool | None = None
    #: Share of each GPU's memory that the engine uses. Above 0 to 1.
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)


class BatchProcessing(Section):
    """The batch lane."""

    #: Most requests of a batch.
    max_batch_size: int | None = Field(None, gt=0, le=50_000)
    #: Time within which the provider answers a batch, in hours or days: `24h`, `2d`.
    default_completion_window: str | None = Field(None, pattern=r"^[1-9][0-9]*[hd]$")
    #: False: only requests that name the batch lane go there.
    enable_cost_optimization: bool | None = None


class CostOptimization(Section):
    """Targets and limits for costs."""

    #: Target: share of the list price that the fleet saves, 0 to 1.
    target_cost_reduction: float | None = Field(None, ge=0, le=1)
    #: Fewer requests than this do not make a batch because of a deadline.
    batch_threshold_requests: int | None = Field(None, gt=0)
    #: Most dollars that one request may cost on the realtime lane, for tenants that are not named.
    realtime_cost_limit_usd: Dollars | None = None


class LatencyTargets(Section):
    """Targets for waiting times."""

    #: Milliseconds from submit to answer on the realtime lane, 95th percentile.
    realtime_p95_ms: float | None = Field(None, gt=0)
    #: Hours from a batch's creation to its last result.
    batch_completion_hours: float | None = Field(None, gt=0)
    #: Milliseconds from submit to answer on the local lane, 95th percentile.
    local_inference_p95_ms: float | None = Field(None, gt=0)


class CostTargets(Section):
    """Targets for costs, in dollars."""

    #: Target for the fleet's dollars a month, and the budget of each tenant that is not named.
    monthly_budget_usd: Dollars | None = None
    #: Target: mean dollars of a request.
    cost_per_request_target: Dollars | None = None


class PerformanceMonitoring(Section):
    """Targets. Only `monthly_budget_usd` is also enforced, as a budget."""

    #: Targets for waiting times.
    latency_targets: LatencyTargets = LatencyTargets()
    #: Targets for costs.
    cost_targets: CostTargets = CostTargets()


class RoutingOrchestration(Section):
    """The policy of the whole fleet. It overrides the other sections of fleet.yaml."""

    #: The realtime lane.
    litellm_router: LitellmRouter = LitellmRouter()
    #: Every engine of the local lane.
    vllm_optimization: VllmOptimization = VllmOptimization()
    #: The batch lane.
    batch_processing: BatchProcessing = BatchProcessing()
    #: Targets and limits for costs.
    cost_optimization: CostOptimization = CostOptimization()
    #: Targets for alerts and reports.
    performance_monitoring: PerformanceMonitoring = PerformanceMonitoring()

    def apply_to(self, file: Values) -> Values:
        """Return the values of fleet.yaml with this section's keys in the sections they belong to.

        This section's keys override the file's, except those of an engine or a tenant, which are
        more specific. The section itself is not in the result.
        """
        rest = {name: value for name, value in file.items() if name != "routing_orchestration"}
        engines = [merge(self._engine(), engine) for engine in rest.get("engines") or ()]
        return merge(rest, self._sections()) | {"engines": engines}

    def _engine(self) -> Values:
        vllm = self.vllm_optimization
        return _without_none(
            {
                "tensor_parallel_size": vllm.tensor_parallel_size,
                "max_num_seqs": vllm.max_batch_size,
                "enable_prefix_caching": vllm.enable_prefix_caching,
                "gpu_memory_utilization": vllm.gpu_memory_utilization,
            }
        )

    def _sections(self) -> Values:
        batch, cost = self.batch_processing, self.cost_optimization
        cost_targets = self.performance_monitoring.cost_targets
        return _without_none(
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
                        "monthly_budget": cost_targets.monthly_budget_usd,
                        "max_cost_realtime": cost.realtime_cost_limit_usd,
                    }
                },
                "targets": self._targets(),
            }
        )

    def _routing(self) -> Values:
        router = self.litellm_router
        strategy = router.routing_strategy
        if strategy == "usage-based-routing":
            strategy = "usage-based-routing-v2"
        breakers = router.enable_circuit_breakers
        return {
            "routing_strategy": strategy,
            "enable_fallbacks": router.enable_fallbacks,
            "disable_cooldowns": None if breakers is None else not breakers,
            "shared_state": router.redis_caching,
        }

    def _targets(self) -> Values:
        latency = self.performance_monitoring.latency_targets
        costs = self.performance_monitoring.cost_targets
        return {
            "realtime_p95_seconds": _scaled(latency.realtime_p95_ms, 1 / 1000),
            "local_p95_seconds": _scaled(latency.local_inference_p95_ms, 1 / 1000),
            "batch_completion_seconds": _scaled(latency.batch_completion_hours, 3600),
            "cost_reduction": self.cost_optimization.target_cost_reduction,
            "monthly_cost_usd": costs.monthly_budget_usd,
            "cost_per_request_usd": costs.cost_per_request_target,
        }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _without_none(values: Values) -> Values:
    """The values without keys that are None, at every level, and without empty sections."""
    nested = {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return {key: value for key, value in nested.items() if value not in (None, {})}
