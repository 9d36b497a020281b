"""The sections of fleet.yaml, and lookups in them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pydantic import Field

from config.agents_config import RoutingOrchestration
from config.api import Api
from config.batch import Batch
from config.engine import EngineConfig
from config.listed_models import Listing, listing_of
from config.litellm_params import ambient_secrets, secret_values
from config.provider import Deployment, Provider
from config.requests import RequestPolicy
from config.routing import LaneSection, Routing
from config.section import Section
from config.targets import Targets
from config.tenants import Tenant
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError, UnknownModel
from primarch_fleet.prices import Rates
from primarch_fleet.requests.base import JsonObject


class FleetSections(Section):
    """The sections of fleet.yaml, each checked alone. `FleetConfig` checks them together."""

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
