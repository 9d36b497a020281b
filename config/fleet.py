"""The fleet's own file, fleet.yaml: models, providers, prices and policies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Set
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator

from config.contradictions import contradictions
from config.engine_parameters import ENGINE_PARAMETERS
from config.fleet_sections import FleetSections
from config.inline_accounts import with_accounts
from config.listed_models import with_listed_models
from config.litellm_params import refuse_literal_secrets, resolve
from config.litellm_proxy import MODULE_SETTINGS, with_proxy_file
from config.offers import models_of
from config.section import Values
from config.settings import settings
from config.yaml_file import YamlFile
from primarch_fleet.catalogue import (
    Catalogue,
    CatalogueDeployment,
    LaneLimits,
)
from primarch_fleet.errors import ConfigError


class FleetConfig(FleetSections):
    """fleet.yaml as a whole."""

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


def _is_extension(name: object) -> bool:
    """Whether a key of the file is the user's own: a place for anchors, as in Docker Compose."""
    return isinstance(name, str) and name.startswith("x-")


def load(path: Path) -> FleetConfig:
    """Read and check the file. Keys of its top level that begin with `x-` are left out.

    Raises:
        ConfigError: The file cannot be read or is wrong; the error names the file, the line and the
            key.
    """
    file = YamlFile(path)
    values = file.values
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if not _is_extension(name)}
        if isinstance(name := values.get("litellm_config"), str):
            values["litellm_config"] = str(path.parent / name)
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
