"""How requests are routed and refused: the `routing` and `lanes` sections of fleet.yaml."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from config.litellm_params import NameKind, did_you_mean, known_names
from config.section import Section
from primarch_fleet.requests import RoutingStrategy
from primarch_fleet.requests.base import JsonObject


def _known(kind: NameKind) -> AfterValidator:
    """A check that LiteLLM has the names in a list or a map."""

    def check(values: Collection[str]) -> Collection[str]:
        for name in values:
            if name not in known_names(kind):
                hint = did_you_mean(name, kind)
                raise ValueError(f"{name}: unknown to LiteLLM; {hint}correct or remove it")
        return values

    return AfterValidator(check)


_Count = Annotated[int, Field(ge=0)]
_RetryPolicy = Annotated[dict[str, _Count], _known("retry_policy")]


class RouterSettings(Section):
    """Settings of LiteLLM's Router that are passed on as they are, and their types."""

    allowed_fails_policy: Annotated[dict[str, _Count], _known("allowed_fails_policy")] = {}
    default_max_parallel_requests: int | None = Field(None, gt=0)
    enable_mid_stream_fallback_continuation: bool = False
    enable_pre_call_checks: bool = False
    fallback_on_unsupported_params: bool = False
    max_fallbacks: _Count | None = None
    model_group_retry_policy: dict[str, _RetryPolicy] = {}
    optional_pre_call_checks: Annotated[list[str], _known("optional_pre_call_checks")] = []
    retry_after: float = Field(0, ge=0)
    retry_policy: _RetryPolicy = {}
    routing_strategy_args: JsonObject = {}
    tag_filtering_match_any: bool = True


ROUTER_SETTINGS = frozenset(RouterSettings.model_fields)


def _alias_target(value: Any) -> Any:
    """LiteLLM also writes an alias as `{model: ..., hidden: ...}`."""
    return value.get("model") if isinstance(value, dict) else value


class MeasuredWeights(Section):
    """How strongly the weights of deployments follow what the workers measure of them.

    A deployment's weight is its configured `weight` (1 without one), divided by its relative time
    and price and multiplied by its share of successful calls, each to the power given here. 0: the
    figure does not count. Each deployment keeps at least 5 % of the best one's weight.
    """

    #: The mean time of its calls in the last five minutes.
    latency: float = Field(1.0, ge=0)
    #: The share of its calls in the last five minutes that did not fail.
    failures: float = Field(2.0, ge=0)
    #: Its price of input tokens.
    price: float = Field(0.0, ge=0)


class FlexPolicy(Section):
    """When `auto` uses a provider's flex tier, which costs half and answers within minutes.

    A request with `cost_preference: cost` that cannot wait for a batch goes there, if its model's
    price list has the tier. If the tier has no capacity, the ordinary tier answers.
    """

    #: Seconds that the request must be able to wait.
    min_seconds: float = Field(900.0, gt=0)
    #: Seconds for one call at the tier; OpenAI recommends 15 minutes.
    timeout: float = Field(900.0, gt=0)


class HealthCheckPolicy(Section):
    """Active checks of the accounts that serve the realtime lane.

    A check lists the account's models, which is free. Requests avoid an account after two failed
    checks, as long as their model has another deployment.
    """

    #: Seconds between two checks of an account, by all workers together.
    interval: float = Field(30.0, ge=1)
    #: Seconds that a check may take.
    timeout: float = Field(5.0, gt=0)
    #: Check an account without a free check by a call with one token of output.
    paid: bool = False


class Routing(Section):
    """Settings of LiteLLM's Router, with LiteLLM's names. Times in seconds."""

    #: The strategy for requests with neither a `routing_strategy` nor a `cost_preference`.
    routing_strategy: RoutingStrategy = "simple-shuffle"
    #: Retries after a failed call, before fallbacks are tried. A call that timed out is not
    #: repeated unless `router_settings.retry_policy.TimeoutErrorRetries` says so: it may be billed.
    num_retries: int = Field(2, ge=0)
    #: Seconds for one call of a provider. The `max_latency` of a request may lengthen it, and the
    #: `timeout` of a deployment replaces it.
    timeout: float = Field(60.0, gt=0)
    #: Seconds until the first token, and between two parts, of a streamed call; lengthened and
    #: replaced likewise.
    stream_timeout: float = Field(30.0, gt=0)
    #: Most seconds in all that a request waits while every deployment refuses: until a deployment's
    #: Retry-After has passed or its cooldown ends. 0: the request fails at once.
    max_wait: float = Field(60.0, ge=0)
    #: Failures within a minute after which a deployment is cooled down.
    allowed_fails: int = Field(3, ge=0)
    #: Seconds for which a cooled-down deployment gets no requests.
    cooldown_time: float = Field(30.0, ge=0)
    #: Seconds for which an account gets no requests after its provider has refused its key, credit
    #: or quota. Each refusal in a row doubles the pause, up to 16 times this value. 0: none.
    account_pause: float = Field(30.0, ge=0)
    #: No deployment is ever cooled down, and no account is paused.
    disable_cooldowns: bool = False
    #: All processes share cooldowns and usage through Redis.
    shared_state: bool = True
    #: Requests may have tags, and requests without tags go to deployments tagged `default`, or to
    #: any if there are none. False: requests with tags are refused.
    enable_tag_filtering: bool = False
    #: False: all three tables of fallbacks are ignored.
    enable_fallbacks: bool = True
    #: By model: the models that answer when all of its deployments fail, in this order.
    fallbacks: dict[str, list[str]] = {}
    #: By model: the models that answer when the prompt is too long for it.
    context_window_fallbacks: dict[str, list[str]] = {}
    #: By model: the models that answer when its provider's content policy refuses the prompt.
    content_policy_fallbacks: dict[str, list[str]] = {}

    #: Weights under `simple-shuffle` follow what the workers measure. Without it, they are fixed.
    measured_weights: MeasuredWeights | None = None
    #: Calls go to the region (`region` of a deployment) whose deployments answer fastest, and to
    #: another region only when all of its deployments fail.
    nearest_region: bool = False
    #: The flex tier; null: only for requests that name it.
    flex: FlexPolicy | None = FlexPolicy()
    #: Active health checks; null: none.
    health_checks: HealthCheckPolicy | None = HealthCheckPolicy()
    #: Other names of models, as producers use them: alias -> model. Not for models of engines.
    model_group_alias: dict[str, Annotated[str, BeforeValidator(_alias_target)]] = {}
    #: Other settings of LiteLLM's Router, with LiteLLM's names: `retry_policy`,
    #: `allowed_fails_policy`, `enable_pre_call_checks`, `routing_strategy_args`...
    router_settings: JsonObject = {}

    @field_validator("router_settings")
    @classmethod
    def _check_router_settings(cls, settings: JsonObject) -> JsonObject:
        RouterSettings.model_validate(settings)
        return settings

    @model_validator(mode="before")
    @classmethod
    def _drop_disabled_fallbacks(cls, data: Any) -> Any:
        if not (isinstance(data, dict) and data.get("enable_fallbacks") is False):
            return data
        return {name: value for name, value in data.items() if not name.endswith("_fallbacks")} | {
            "enable_fallbacks": False,
            "fallbacks": {},
        }

    @property
    def _fallback_tables(self) -> tuple[dict[str, list[str]], ...]:
        return self.fallbacks, self.context_window_fallbacks, self.content_policy_fallbacks

    def resolve_alias(self, model: str) -> str:
        """Return the model of an alias; any other name as it is."""
        return self.model_group_alias.get(model, model)

    def fallback_models(self) -> set[str]:
        """Return every model in the tables of fallbacks, on either side."""
        return {
            name
            for table in self._fallback_tables
            for model, fallbacks in table.items()
            for name in (model, *fallbacks)
        }

    def possible_models(self, model: str) -> set[str]:
        """Return the models that may answer a request: its own, its fallbacks, and theirs."""
        reached, new = set[str](), {self.resolve_alias(model)}
        while new:
            reached |= new
            fallbacks = {
                fallback
                for table in self._fallback_tables
                for name in new
                for fallback in table.get(name, ())
            }
            new = fallbacks - reached
        return reached


class LaneSection(Section):
    """When a lane refuses requests. The producer gets the error at submit and may retry."""

    #: Most requests in one of the lane's queues; on the batch lane, in its queue and in batches.
    #: Without it, as many as fit in Redis.
    max_queued: int | None = Field(None, gt=0)
    #: What happens to a request while no worker serves its queue (on the local lane, its model), or
    #: the queue is paused: `keep` it in the queue until a worker takes it, or `refuse` it. Choose
    #: `keep` where workers are scaled down to none, since queued requests start one.
    without_worker: Literal["keep", "refuse"] = "keep"
    #: Seconds after which a refused producer may retry. A full lane whose workers report their
    #: throughput tells an estimate instead.
    retry_after: float = Field(5.0, gt=0)
