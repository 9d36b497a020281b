"""The fleet's own file, fleet.yaml: models, providers, prices and policies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Set
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from config.agents_config import RoutingOrchestration
from config.api import Api
from config.batch import Batch
from config.contradictions import contradictions
from config.engine import EngineConfig
from config.engine_parameters import ENGINE_PARAMETERS
from config.inline_accounts import with_accounts
from config.listed_models import Listing, listing_of, with_listed_models
from config.litellm_params import ambient_secrets, refuse_literal_secrets, resolve, secret_values
from config.litellm_proxy import MODULE_SETTINGS, with_proxy_file
from config.offers import models_of
from config.provider import Deployment, Provider
from config.requests import RequestPolicy
from config.routing import LaneSection, Routing
from config.section import Section, Values
from config.settings import settings
from config.targets import Targets
from config.tenants import Tenant
from config.yaml_file import YamlFile
from primarch_fleet.catalogue import (
    Catalogue,
    CatalogueDeployment,
    LaneLimits,
)
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError, UnknownModel
from primarch_fleet.prices import Rates
from primarch_fleet.requests.base import JsonObject


class FleetConfig(Section):
    """fleet.yaml as a whole."""

    #: The accounts, by a name of your choice.
    providers: dict[str, Provider] = {}
    #: Which account serves which model. The first deployment of a model sets its list price.
    deployments: list[Deployment] = []
    #: A LiteLLM proxy's own file, `config.yaml`, relative to this file. Its models are served as
    #: they stand there; the keys of this file override it.
    litellm_config: Path | None = None
    #: Settings of LiteLLM for all calls of the realtime lane, with LiteLLM's names, such as
    #: `modify_params` and `ssl_verify`.
    litellm_settings: JsonObject = {}
    #: Environment variables of the fleet's processes, for libraries that read their settings there.
    #: They hold no secrets. A variable that is set already stays as it is.
    environment_variables: dict[str, str] = {}
    #: The realtime lane's routing.
    routing: Routing = Routing()
    #: The models on your own hardware.
    engines: list[EngineConfig] = []
    #: The batch lane.
    batch: Batch = Batch()
    #: Budgets and limits, by tenant; `default` applies to each tenant that is not named. Without
    #: an entry, a tenant has no limits.
    tenants: dict[str, Tenant] = {}
    #: What requests carry to providers and engines.
    requests: RequestPolicy = RequestPolicy()
    #: Figures that alerts and reports measure against.
    targets: Targets = Targets()
    #: The HTTP API of `fleet serve`.
    api: Api = Api()
    #: The fleet's policy in one place, in the format of the Primarch agents. It overrides the other
    #: sections when the file is loaded.
    routing_orchestration: RoutingOrchestration | None = None
    #: When lanes refuse requests, by lane. A lane that is not named takes what fits in Redis.
    lanes: dict[Lane, LaneSection] = {}
    #: Most bytes of a request, as JSON.
    max_request_bytes: int = Field(8_000_000, gt=0)

    @model_validator(mode="wrap")
    @classmethod
    def _expand(cls, data: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the values with those of a proxy's file, inline accounts and the orchestration."""
        if isinstance(data, dict):
            data = with_listed_models(with_accounts(_with_litellm_config(data)))
        config = check(data)
        orchestration = config.routing_orchestration
        return check(orchestration.apply_to(data)) if orchestration else config

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if unknown := self.litellm_settings.keys() - MODULE_SETTINGS:
            raise ValueError(
                f"litellm_settings: {_names(unknown)}: not supported; supported are "
                f"{_names(set(MODULE_SETTINGS))}"
            )
        refuse_literal_secrets({"environment_variables": self.environment_variables})
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Raise ValueError for a name that is unknown, or is given twice."""
        deployments, engines = self.deployments, self.engines
        models = {deployment.model for deployment in deployments}
        aliases = self.routing.model_group_alias
        wrong: list[tuple[str, Set[str], str]] = [
            (
                "deployments: unknown provider",
                {deployment.provider for deployment in deployments} - self.providers.keys(),
                "add an entry to providers",
            ),
            (
                "deployments: id used twice",
                _repeated(deployment.id for deployment in deployments),
                "give each its own id",
            ),
            (
                "engines: model served twice",
                _repeated(model for engine in engines for model in engine.models),
                "keep one engine or adapter for each name",
            ),
            (
                "routing: model_group_alias names an unknown model",
                set(aliases.values()) - models,
                "name models of deployments",
            ),
            (
                "routing: model_group_alias has the name of a model",
                aliases.keys() & models,
                "give the alias another name",
            ),
            (
                "routing: fallbacks name an unknown model",
                self.routing.fallback_models() - models,
                "name models of deployments",
            ),
        ]
        for what, names, advice in wrong:
            if names:
                raise ValueError(f"{what}: {_names(names)}; {advice}")
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        """Raise ValueError for a deployment without a price."""
        for deployment in self.deployments:
            self.rates(deployment)
        return self

    def deployments_of(self, model: str, tags: Iterable[str] = ()) -> list[Deployment]:
        """Return the deployments that serve a model, or its alias, and have all of these tags."""
        model, wanted = self.routing.resolve_alias(model), set(tags)
        return [
            deployment
            for deployment in self.deployments
            if deployment.model == model and wanted.issubset(deployment.tags)
        ]

    def batch_deployment(self, model: str) -> Deployment:
        """Return the deployment that serves a model on the batch lane.

        Raises:
            KeyError: No deployment of the model has `batch: true`.
        """
        for deployment in self.deployments_of(model):
            if deployment.batch:
                return deployment
        raise KeyError(model)

    def engine(self, model: str = "") -> EngineConfig:
        """Return the engine of a model; without a model, the first.

        Raises:
            ConfigError: There is none.
        """
        for engine in self.engines:
            if model in ("", engine.model):
                return engine
        if not model:
            raise ConfigError("engines: empty; add an engine to serve the local lane")
        raise ConfigError(f"engines: no engine serves {model!r}; set FLEET_ENGINE to a model here")

    def secrets(self) -> frozenset[str]:
        """Return every secret of every account, and those of the environment: never show them.

        An account whose variable is not set has no secret here.
        """
        providers = [provider.model_dump() for provider in self.providers.values()]
        own = [deployment.litellm_params.values() for deployment in self.deployments]
        return frozenset({*secret_values([providers, own]), *ambient_secrets()})

    def rates(self, deployment: Deployment) -> Rates:
        """Return all prices of a deployment: the price list's, with its own in place."""
        return self._rates[deployment.id]

    def has_own_bill(self, deployment: Deployment) -> bool:
        """Return whether LiteLLM's figure of an answer's cost counts in place of the prices.

        It does for providers that bill by rules of their own, unless the deployment has a price.
        """
        return deployment.price is None and self._listings[deployment.id].own_bill

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        return {
            deployment.id: listing_of(self.providers[deployment.provider], deployment)
            for deployment in self.deployments
        }

    @cached_property
    def _rates(self) -> dict[str, Rates]:
        rates, missing = {}, []
        for index, deployment in enumerate(self.deployments):
            listed = self._listings[deployment.id].rates
            try:
                rates[deployment.id] = deployment.rates(listed, self.batch.discount)
            except ValueError as error:
                name = self.providers[deployment.provider].litellm_provider
                missing.append(
                    f"deployments.{index}.{error}. LiteLLM's price list has no price of "
                    f"{name}/{deployment.upstream}, which is {deployment.id}"
                )
        if missing:
            raise ValueError(
                f"{'; '.join(missing)}; model_info.base_model may name a model that is in the "
                "list, and model_info.input_cost_per_token a price in dollars"
            )
        return rates

    def list_price(self, model: str) -> Rates:
        """Return the price against which savings on a model are measured.

        Raises:
            UnknownModel: Nothing serves the model.
        """
        for deployment in self.deployments_of(model):
            return self.rates(deployment)
        for engine in self.engines:
            if model in engine.models:
                return engine.list_rates()
        raise UnknownModel(f"model: {model!r} is not served by this fleet")

    def catalogue(self) -> Catalogue:
        """Build what producers are told: no keys, no addresses."""
        return Catalogue(
            models=models_of(self),
            completion_window=self.batch.window_seconds,
            max_request_bytes=self.max_request_bytes,
            tenants={name: tenant.limits() for name, tenant in self.tenants.items()},
            lanes={
                lane: LaneLimits(max_queued=section.max_queued, retry_after=section.retry_after)
                for lane, section in self.lanes.items()
                if section.max_queued is not None
            },
            needs_worker={
                lane: section.retry_after
                for lane, section in self.lanes.items()
                if section.without_worker == "refuse"
            },
            heartbeats=True,
            auto_batch=self.batch.auto,
            flex_seconds=self.routing.flex and self.routing.flex.min_seconds,
            tag_filtering=self.routing.enable_tag_filtering,
            engine_parameters={
                endpoint: tuple(sorted(names))
                for endpoint, names in ENGINE_PARAMETERS.items()
                if self.engines
            },
            extra_headers=self.requests.extra_headers,
            share_prefix_cache=self.requests.share_prefix_cache,
            deployments=tuple(
                CatalogueDeployment(
                    id=one.id, model=one.model, account=one.provider, region=one.region
                )
                for one in self.deployments
            ),
        )


def _with_litellm_config(file: Values) -> Values:
    path = file.get("litellm_config")
    if not isinstance(path, str):
        return file
    rest = {name: value for name, value in file.items() if name != "litellm_config"}
    return with_proxy_file(rest, Path(path))


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _names(names: Set[str]) -> str:
    return ", ".join(sorted(names))


def load(path: Path) -> FleetConfig:
    """Read and check the file.

    Raises:
        ConfigError: The file cannot be read or is wrong; the error names the file, the line and the
            key.
    """
    file = YamlFile(path)
    values = file.values
    if isinstance(values, dict) and isinstance(name := values.get("litellm_config"), str):
        values = {**values, "litellm_config": str(path.parent / name)}
    try:
        config = FleetConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(file.explain(error, FleetConfig))) from None
    if found := [file.report(*problem) for problem in contradictions(config)]:
        raise ConfigError("\n".join(found))
    for name, value in config.environment_variables.items():
        try:
            os.environ.setdefault(name, str(resolve(value)))
        except ConfigError as error:
            place = ("environment_variables", name)
            raise ConfigError(file.report(place, str(error))) from None
    return config


@cache
def fleet_config() -> FleetConfig:
    """Return this process's configuration: the file FLEET_CONFIG, by default config/fleet.yaml."""
    return load(settings().config)
