"""The fleet's own file, fleet.yaml: what it serves, from where, at which price, by which policy."""

from __future__ import annotations

import os
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from config.settings import settings
from primarch_fleet.catalogue import Catalogue, Model, Offer
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, JsonObject, Lane
from primarch_fleet.errors import ConfigError
from primarch_fleet.money import Price

ENV = "os.environ/"


def _only_from_environment(value: str) -> str:
    if not value.startswith(ENV):
        raise ValueError(f"write {ENV}NAME: no key and no address of yours belongs into this file")
    return value


#: LiteLLM's way to name an environment variable: `os.environ/OPENAI_API_KEY`.
FromEnvironment = Annotated[str, AfterValidator(_only_from_environment)]
Kind = Literal["chat", "embedding"]


class Section(BaseModel):
    """A part of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Provider(Section):
    """An account at a provider."""

    #: LiteLLM's name of the provider: openai, azure, anthropic, ... The lanes share the entry.
    litellm_provider: str
    api_key: FromEnvironment
    #: Another address than the provider's own, if the variable is set.
    api_base: FromEnvironment | None = None
    #: No real model answers there; every receipt says so.
    simulated: bool = False

    def key(self) -> str:
        """The secret itself. Raises ConfigError, which names the variable to set."""
        name = self.api_key.removeprefix(ENV)
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigError(f"{name} is not set: the provider's key is read from it") from None

    def base_url(self) -> str | None:
        return os.environ.get(self.api_base.removeprefix(ENV)) if self.api_base else None

    def address(self) -> str:
        """The address of a provider that has none of its own. Raises ConfigError without it."""
        if self.api_base is None:
            raise ConfigError(
                f"api_base: name the variable with your {self.litellm_provider}'s address"
            )
        address = self.base_url()
        if not address:
            name = self.api_base.removeprefix(ENV)
            raise ConfigError(f"{name} is not set: the provider's address is read from it")
        return address


class RoutingParams(Section):
    """LiteLLM's parameters of one deployment, by LiteLLM's names."""

    weight: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    order: int | None = None
    tags: list[str] | None = None
    max_parallel_requests: int | None = None
    #: Seconds for one attempt.
    timeout: float | None = None


class Deployment(Section):
    """One place that serves a model, e.g. `gpt-4o` at one account."""

    id: str
    model: str
    provider: str
    #: The provider's name for the model.
    upstream: str
    kind: Kind = "chat"
    price: Price
    #: Also serves the batch lane, at the batch discount.
    batch: bool = False
    params: RoutingParams = RoutingParams()


class Routing(Section):
    """LiteLLM Router settings, by LiteLLM's names; times in seconds."""

    routing_strategy: Literal[
        "simple-shuffle",
        "least-busy",
        "usage-based-routing-v2",
        "latency-based-routing",
        "cost-based-routing",
    ] = "simple-shuffle"
    num_retries: int = Field(2, ge=0)
    timeout: float = Field(60.0, gt=0)
    stream_timeout: float = Field(30.0, gt=0)
    allowed_fails: int = Field(3, ge=0)
    cooldown_time: float = Field(30.0, ge=0)
    enable_tag_filtering: bool = False
    fallbacks: dict[str, list[str]] = {}
    context_window_fallbacks: dict[str, list[str]] = {}
    content_policy_fallbacks: dict[str, list[str]] = {}

    def groups(self) -> set[str]:
        """Every model that a fallback names."""
        tables = (self.fallbacks, self.context_window_fallbacks, self.content_policy_fallbacks)
        return {name for table in tables for key, to in table.items() for name in (key, *to)}


#: What a local worker tells vLLM by itself.
OURS = {"served_model_name", "runner", "enable_lora", "enable_auto_tool_choice"}


class Engine(Section):
    """A model on own hardware. Settings that vLLM knows have vLLM's names and defaults.

    A worker process runs one engine; `data_parallel_size` workers take from one queue.
    """

    model: str
    #: "simulated" answers without a model and says so in every receipt.
    engine: Literal["vllm", "simulated"]
    #: What vLLM loads: a folder or a Hugging Face name.
    path: str = ""
    kind: Kind = "chat"
    price: Price
    #: What the same answer would cost elsewhere; the saving is measured against it.
    list_price: Price | None = None
    quality: float = Field(1.0, ge=0, le=1)

    #: The GPUs of its workers together, by number or UUID; empty: each sees what its process sees.
    gpus: list[Annotated[int, Field(ge=0)] | str] = []
    tensor_parallel_size: int = Field(1, gt=0)
    pipeline_parallel_size: int = Field(1, gt=0)
    data_parallel_size: int = Field(1, gt=0)

    #: Requests that are computed at the same time; vLLM's own default depends on the hardware.
    max_num_seqs: int = Field(128, gt=0)
    #: Requests that may wait inside the engine, so that a place that falls free is filled at once.
    #: All others wait in the queue, where another worker or a more urgent one can pass them.
    max_waiting: int = Field(32, ge=0)
    #: Requests with a common beginning go to the worker that has it in its cache.
    prefix_affinity: bool = True
    max_model_len: int | None = Field(None, gt=0)
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1)
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    speculative_config: JsonObject | None = None
    quantization: str | None = None
    dtype: str = "auto"
    enforce_eager: bool = False
    #: Which of vLLM's parsers reads the model's tool calls and its reasoning.
    tool_call_parser: str | None = None
    reasoning_parser: str = ""
    #: LoRA adapters, folder or Hugging Face name by the model name that producers use.
    lora_modules: dict[str, str] = {}
    max_lora_rank: int = Field(16, gt=0)
    #: Anything else that `vllm serve` takes, by its name with underscores.
    engine_args: JsonObject = {}

    @model_validator(mode="after")
    def _loads_something(self) -> Self:
        if self.engine == "vllm" and not self.path:
            raise ValueError("path: vLLM needs a folder or a Hugging Face name to load")
        return self

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        if twice := sorted(set(self.engine_args) & {*type(self).model_fields, *OURS}):
            raise ValueError(f"engine_args: {', '.join(twice)}: it follows from the engine's keys")
        return self

    @model_validator(mode="after")
    def _fits_its_gpus(self) -> Self:
        if len(set(map(str, self.gpus))) < len(self.gpus):
            raise ValueError("gpus: one is named twice")
        needed = self.gpus_per_worker * self.data_parallel_size
        if self.gpus and len(self.gpus) != needed:
            raise ValueError(
                f"gpus: {len(self.gpus)} are given, {needed} are needed: tensor_parallel_size x "
                "pipeline_parallel_size x data_parallel_size"
            )
        return self

    @property
    def queue(self) -> str:
        return f"local.{self.model}"

    @property
    def models(self) -> list[str]:
        """The names that it answers to: its model's and its adapters'."""
        return [self.model, *self.lora_modules]

    @property
    def gpus_per_worker(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def places(self) -> int:
        """Requests that one worker holds: those that are computed and those that wait for it."""
        return self.max_num_seqs + self.max_waiting


class Batch(Section):
    """When to cut a batch and how to follow it. Limits: OpenAI's Batch guide; times in seconds."""

    #: 50,000 requests and 200 MB are OpenAI's limits; both leave room.
    max_requests: int = Field(45_000, gt=0, le=50_000)
    max_bytes: int = Field(190_000_000, gt=0, le=200_000_000)
    #: The oldest request waits at most so long before its batch is cut.
    max_wait: float = Field(300.0, ge=0)
    #: A deadline nearer than the window and this margin cuts at once.
    margin: float = Field(3600.0, ge=0)
    completion_window: Literal["24h"] = "24h"
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
    #: Tries of one request that the provider or the model let fail.
    max_attempts: int = Field(3, gt=0)

    @property
    def window(self) -> float:
        """The completion window in seconds."""
        return float(self.completion_window.removesuffix("h")) * 3600


class FleetConfig(Section):
    """The whole file, checked as a whole."""

    providers: dict[str, Provider]
    deployments: list[Deployment]
    routing: Routing = Routing()
    engines: list[Engine] = []
    batch: Batch = Batch()
    #: The largest request accepted, in bytes of JSON.
    max_request_bytes: int = Field(8_000_000, gt=0)

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

    def batch_deployment(self, model: str) -> Deployment:
        """The deployment that serves a model on the batch lane. Raises KeyError."""
        return {one.model: one for one in reversed(self.deployments) if one.batch}[model]

    def engine(self, model: str = "") -> Engine:
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
            realtime = Offer(queue=REALTIME_QUEUE, price=deployment.price)
            offers: dict[Lane, Offer] = {"realtime": realtime}
            if deployment.batch:
                price = deployment.price.times(self.batch.discount)
                offers["batch"] = Offer(queue=BATCH_QUEUE, price=price)
            _add(models, deployment.model, deployment.kind, offers, deployment.price)
        for engine in self.engines:
            offer = Offer(queue=engine.queue, price=engine.price, quality=engine.quality)
            list_price = engine.list_price or engine.price
            for name in engine.models:
                _add(models, name, engine.kind, {"local": offer}, list_price)
        return Catalogue(
            models=models,
            completion_window=self.batch.window,
            max_request_bytes=self.max_request_bytes,
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
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


@cache
def fleet_config() -> FleetConfig:
    """The process's file: FLEET_CONFIG, or the one beside this module."""
    return load(settings().config)
