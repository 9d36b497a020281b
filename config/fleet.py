"""The fleet's own file, fleet.yaml: what it serves, from where, at which price, by which policy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from config.agents_config import Orchestration
from config.engine import EngineConfig
from config.section import Kind, Priced, Section
from config.settings import settings
from config.targets import Targets
from config.tenants import Tenant
from primarch_fleet.catalogue import Catalogue, LaneLimits, Model, Offer
from primarch_fleet.contract import (
    BATCH_QUEUE,
    REALTIME_QUEUE,
    Lane,
    RoutingStrategy,
)
from primarch_fleet.errors import ConfigError
from primarch_fleet.money import Price, max_price
from primarch_fleet.validation import explain

ENVIRONMENT_PREFIX = "os.environ/"


def _only_from_environment(value: str) -> str:
    if not value.startswith(ENVIRONMENT_PREFIX):
        raise ValueError(
            f"write {ENVIRONMENT_PREFIX}NAME: no key and no address of yours belongs into this file"
        )
    return value


#: LiteLLM's way to name an environment variable: `os.environ/OPENAI_API_KEY`.
FromEnvironment = Annotated[str, AfterValidator(_only_from_environment)]
#: LiteLLM reads `!` and `&` before a tag as "not" and "and".
Tag = Annotated[str, Field(pattern="^[^!&]")]


class Provider(Section):
    """An account at a provider."""

    #: LiteLLM's name of the provider: openai, azure, anthropic, ... The lanes share the entry.
    litellm_provider: str
    api_key: FromEnvironment
    #: Another address than the provider's own, if the variable is set.
    api_base: FromEnvironment | None = None
    #: What the provider signs its webhooks with (whsec_...); only `python -m scheduler webhook`
    #: reads it, and takes none of a provider without it.
    webhook_secret: FromEnvironment | None = None
    #: No real model answers there; every receipt says so.
    simulated: bool = False

    def key(self) -> str:
        """The secret itself. Raises ConfigError, which names the variable to set."""
        name = self.api_key.removeprefix(ENVIRONMENT_PREFIX)
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigError(f"{name} is not set: the provider's key is read from it") from None

    def base_url(self) -> str | None:
        return (
            os.environ.get(self.api_base.removeprefix(ENVIRONMENT_PREFIX))
            if self.api_base
            else None
        )

    def address(self) -> str:
        """The address of a provider that has none of its own. Raises ConfigError without it."""
        if self.api_base is None:
            raise ConfigError(
                f"api_base: name the variable with your {self.litellm_provider}'s address"
            )
        address = self.base_url()
        if not address:
            name = self.api_base.removeprefix(ENVIRONMENT_PREFIX)
            raise ConfigError(f"{name} is not set: the provider's address is read from it")
        return address


class RoutingParams(Section):
    """LiteLLM's parameters of one deployment, by LiteLLM's names."""

    weight: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    order: int | None = None
    tags: list[Tag] | None = None
    max_parallel_requests: int | None = None
    #: Seconds for one attempt.
    timeout: float | None = None


class Deployment(Priced):
    """One place that serves a model, e.g. `gpt-4o` at one account."""

    id: str
    model: str
    provider: str
    #: The provider's name for the model.
    upstream: str
    #: The most tokens that one choice of its answers can have: its provider's word for the model.
    max_output_tokens: int | None = Field(None, gt=0)
    #: Also serves the batch lane, at the batch discount.
    batch: bool = False
    #: Prompt tokens that the provider lets all batches of the model hold together: its "batch queue
    #: limit". Without it too many are only noticed when the provider refuses a batch.
    batch_enqueued_token_limit: int | None = Field(None, gt=0)
    params: RoutingParams = RoutingParams()


class Routing(Section):
    """LiteLLM Router settings, by LiteLLM's names; times in seconds."""

    #: For requests that neither name one nor have a cost_preference.
    routing_strategy: RoutingStrategy = "simple-shuffle"
    num_retries: int = Field(2, ge=0)
    timeout: float = Field(60.0, gt=0)
    stream_timeout: float = Field(30.0, gt=0)
    #: A request waits at most so long in all while every deployment refuses: until one said to come
    #: again (Retry-After), or its cooldown ends. 0: it fails at once.
    max_wait: float = Field(60.0, ge=0)
    allowed_fails: int = Field(3, ge=0)
    cooldown_time: float = Field(30.0, ge=0)
    disable_cooldowns: bool = False
    #: All processes know of each other's cooldowns and usage, through Redis.
    shared_state: bool = True
    #: Without it a request with tags is refused. With it one without tags goes to the deployments
    #: tagged "default"; to any, if there are none.
    enable_tag_filtering: bool = False
    #: False voids the three tables.
    enable_fallbacks: bool = True
    fallbacks: dict[str, list[str]] = {}
    context_window_fallbacks: dict[str, list[str]] = {}
    content_policy_fallbacks: dict[str, list[str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _has_no_fallbacks(cls, data: Any) -> Any:
        if not (isinstance(data, dict) and data.get("enable_fallbacks") is False):
            return data
        return {name: value for name, value in data.items() if not name.endswith("_fallbacks")} | {
            "enable_fallbacks": False,
            "fallbacks": {},
        }

    @property
    def _tables(self) -> tuple[dict[str, list[str]], ...]:
        return self.fallbacks, self.context_window_fallbacks, self.content_policy_fallbacks

    def groups(self) -> set[str]:
        """Every model that a fallback names."""
        return {name for table in self._tables for key, to in table.items() for name in (key, *to)}

    def answers_for(self, model: str) -> set[str]:
        """The models that may answer for one: itself, its fallbacks, and theirs."""
        found, new = set[str](), {model}
        while new:
            found |= new
            new = {to for table in self._tables for one in new for to in table.get(one, ())} - found
        return found


class Batch(Section):
    """When to cut a batch and how to follow it. Limits: OpenAI's Batch guide; times in seconds."""

    #: False: only a request that names the batch lane goes there, or one over its tenant's budget
    #: by `over_budget`.
    auto: bool = True

    #: 50,000 requests and 200 MB are OpenAI's limits; both leave room.
    max_requests: int = Field(45_000, gt=0, le=50_000)
    #: Texts to embed, of all requests of a batch together.
    max_inputs: int = Field(45_000, gt=0, le=50_000)
    max_bytes: int = Field(190_000_000, gt=0, le=200_000_000)
    #: The oldest request waits at most so long before its batch is cut.
    max_wait: float = Field(300.0, ge=0)
    #: A deadline nearer than the window and this margin cuts at once.
    margin: float = Field(3600.0, ge=0)
    #: Fewer requests than this are not worth a batch for a deadline's sake: those that cannot wait
    #: for more go to the realtime lane, at its price. 1 never sends any.
    min_requests: int = Field(1, gt=0)
    #: A request that still waits so many seconds before its deadline goes to the realtime lane, if
    #: its max_cost allows. 0 never sends any: they fail when it has passed.
    promote_before: float = Field(900.0, ge=0)
    #: Share of `batch_enqueued_token_limit` that is used: our count of tokens is an estimate.
    token_share: float = Field(0.9, gt=0, le=1)
    #: Hours or days; OpenAI, Azure and Anthropic have 24h alone.
    completion_window: str = Field("24h", pattern=r"^[1-9][0-9]*[hd]$")
    #: Share of the list price that a batch costs.
    discount: Decimal = Field(Decimal("0.5"), gt=0, le=1)
    aggregate_interval: float = Field(5.0, gt=0)
    #: A live batch is looked at after so long, then 1.5 times later each time up to the maximum.
    poll_interval: float = Field(15.0, gt=0)
    poll_interval_max: float = Field(300.0, gt=0)
    #: A batch whose creation had no known outcome is created again when no scan of the provider's
    #: list has shown it for so long: a new batch may be missing from the list for a while.
    list_lag: float = Field(300.0, ge=0)
    #: A batch or a file that the provider does not know for so long is lost: its requests go again.
    lost_after: float = Field(6 * 3600.0, gt=0)
    #: A body, of a request or of an answer, of more bytes lies at FLEET_BODIES, if that is set;
    #: Redis holds a reference to it.
    body_limit: int = Field(262_144, gt=0)
    #: Tries of one request that the provider or the model let fail.
    max_attempts: int = Field(3, gt=0)

    @property
    def window(self) -> float:
        """The completion window in seconds."""
        unit = {"h": 3600.0, "d": 86_400.0}[self.completion_window[-1]]
        return int(self.completion_window[:-1]) * unit


class LaneSection(Section):
    """When a lane takes nothing: it is refused to the producer, who may come again."""

    #: Requests that may wait in one of its queues, on the batch lane with those in batches; without
    #: it as many as Redis holds.
    max_queued: int | None = Field(None, gt=0)
    #: What becomes of a request for a lane without a living worker (the local lane: of the model):
    #: its queue keeps it until one comes, or it is refused. Keep it where workers are scaled to
    #: none: it is what waits that wakes one.
    without_worker: Literal["keep", "refuse"] = "keep"
    #: Seconds that a producer is told to wait; of a full lane whose workers say how fast they are
    #: it is told an estimate instead.
    retry_after: float = Field(5.0, gt=0)


class FleetConfig(Section):
    """The whole file, checked as a whole."""

    providers: dict[str, Provider]
    deployments: list[Deployment]
    routing: Routing = Routing()
    engines: list[EngineConfig] = []
    batch: Batch = Batch()
    #: Budgets by tenant; "default" is for each that is not named. Without both there is no limit.
    tenants: dict[str, Tenant] = {}
    targets: Targets = Targets()
    #: The fleet's policy in one place; once loaded it is in the other sections.
    routing_orchestration: Orchestration | None = None
    #: A lane that is not named takes as much as Redis holds.
    lanes: dict[Lane, LaneSection] = {}
    #: The largest request accepted, in bytes of JSON.
    max_request_bytes: int = Field(8_000_000, gt=0)

    @model_validator(mode="wrap")
    @classmethod
    def _orchestrated(cls, data: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        config = check(data)
        orchestration = config.routing_orchestration
        return check(orchestration.over(data)) if orchestration else config

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        models = {deployment.model for deployment in self.deployments}
        ids = [deployment.id for deployment in self.deployments]
        providers = {deployment.provider for deployment in self.deployments}
        local = [model for engine in self.engines for model in engine.models]
        for what, wrong in {
            "deployments: unknown provider": providers - set(self.providers),
            "deployments: id used twice": {one for one in ids if ids.count(one) > 1},
            "engines: model served twice": {one for one in local if local.count(one) > 1},
            "routing: a fallback names an unknown model": self.routing.groups() - models,
        }.items():
            if wrong:
                raise ValueError(f"{what}: {', '.join(sorted(wrong))}")
        return self

    def deployments_of(self, model: str, tags: Iterable[str] = ()) -> list[Deployment]:
        """Where the realtime lane finds a model: the deployments that have all of these tags."""
        return [
            one
            for one in self.deployments
            if one.model == model and set(tags).issubset(one.params.tags or ())
        ]

    def batch_deployment(self, model: str) -> Deployment:
        """The deployment that serves a model on the batch lane. Raises KeyError."""
        return {one.model: one for one in reversed(self.deployments) if one.batch}[model]

    def engine(self, model: str = "") -> EngineConfig:
        """The engine of a model, or the first. Raises ConfigError when there is none."""
        for engine in self.engines:
            if model in ("", engine.model):
                return engine
        raise ConfigError(f"engines: there is none for {model!r}; see FLEET_ENGINE")

    def list_price(self, model: str) -> Price:
        """The price against which savings on a model are measured."""
        return self.catalogue().model(model).list_price

    def catalogue(self) -> Catalogue:
        """What producers are told."""
        models: dict[str, Model] = {}
        for deployment in self.deployments:
            offers: dict[Lane, Offer] = {"realtime": self._realtime(deployment)}
            if deployment.batch:
                price = deployment.price.scaled(self.batch.discount)
                offers["batch"] = Offer(
                    queue=BATCH_QUEUE, price=price, max_output_tokens=deployment.max_output_tokens
                )
            _add(models, deployment.model, deployment.kind, offers, deployment.price)
        for engine in self.engines:
            offer = Offer(
                queue=engine.queue,
                price=engine.price,
                quality=engine.quality,
                max_output_tokens=engine.max_model_len,
            )
            list_price = engine.list_price or engine.price
            for name in engine.models:
                _add(models, name, engine.kind, {"local": offer}, list_price)
        return Catalogue(
            models=models,
            completion_window=self.batch.window,
            max_request_bytes=self.max_request_bytes,
            tenants={name: tenant.limits() for name, tenant in self.tenants.items()},
            lanes={
                lane: LaneLimits(max_queued=one.max_queued, retry_after=one.retry_after)
                for lane, one in self.lanes.items()
                if one.max_queued is not None
            },
            needs_worker={
                lane: one.retry_after
                for lane, one in self.lanes.items()
                if one.without_worker == "refuse"
            },
            heartbeats=True,
            auto_batch=self.batch.auto,
            tag_filtering=self.routing.enable_tag_filtering,
        )

    def _realtime(self, deployment: Deployment) -> Offer:
        """Its price, and the most that any deployment may cost and write that may answer for it."""
        models = self.routing.answers_for(deployment.model)
        others = [one for one in self.deployments if one.model in models]
        lengths = [one.max_output_tokens for one in others]
        alike = self.deployments_of(deployment.model)
        tags = {tuple(sorted(one.params.tags or ())) for one in alike}
        return Offer(
            queue=REALTIME_QUEUE,
            price=deployment.price,
            ceiling=max_price(one.price for one in others),
            max_output_tokens=None if None in lengths else max(filter(None, lengths)),
            tags=tuple(sorted(tags)),
        )


def _add(
    models: dict[str, Model], name: str, kind: Kind, offers: dict[Lane, Offer], price: Price
) -> None:
    """The first place that serves a model on a lane sets its price there."""
    known = models.get(name) or Model(kind=kind, lanes={}, list_price=price)
    models[name] = known.model_copy(update={"lanes": {**offers, **known.lanes}})


def load(path: Path) -> FleetConfig:
    """Read and check the file. Raises ConfigError, which names the file and the key."""
    try:
        return FleetConfig.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None


@cache
def fleet_config() -> FleetConfig:
    """The process's file: FLEET_CONFIG, or the one beside this module."""
    return load(settings().config)
