"""Opens the provider accounts that a configuration needs for its batches."""

from __future__ import annotations

from config.batch import Batch
from config.fleet import FleetConfig
from config.provider import Deployment, Provider
from primarch_fleet.errors import ConfigError
from primarch_fleet.requests import REQUESTS
from scheduler.providers import PROVIDERS
from scheduler.providers.base import BatchProvider, Capabilities

#: The own endpoint of a model, by its kind.
ENDPOINTS = {request.kinds[0]: request.endpoint for request in REQUESTS.values()}


def open_accounts(config: FleetConfig) -> dict[str, BatchProvider]:
    """Open the account of each provider that serves batches, by its name in the configuration.

    Raises:
        ConfigError: A provider has no batches or its account is not configured, its batches do not
            serve a deployment, or a limit is above its own. The message names the entry.
    """
    provider_types: dict[str, type[BatchProvider]] = {}
    for deployment in config.deployments:
        if deployment.batch:
            name = deployment.provider
            provider_types[name] = _provider_type(name, config.providers[name])
            _check_endpoint(deployment, provider_types[name].capabilities)
    for name, provider_type in provider_types.items():
        _check_limits(name, config.batch, provider_type.capabilities)
    return {
        name: _open(name, config.providers[name], provider_type)
        for name, provider_type in provider_types.items()
    }


def _provider_type(name: str, provider: Provider) -> type[BatchProvider]:
    try:
        return PROVIDERS[provider.litellm_provider]
    except KeyError:
        raise ConfigError(
            f"providers.{name}: batches are supported at {', '.join(PROVIDERS)}, not at "
            f"{provider.litellm_provider}; remove `batch: true` from its deployments"
        ) from None


def _check_endpoint(deployment: Deployment, capabilities: Capabilities) -> None:
    endpoint = ENDPOINTS[deployment.kind]
    if endpoint not in capabilities.endpoints:
        raise ConfigError(
            f"deployments.{deployment.id}: {deployment.provider} has no batches of {endpoint}; "
            "remove its `batch: true`"
        )


def _check_limits(name: str, policy: Batch, capabilities: Capabilities) -> None:
    for key in ("max_requests", "max_bytes"):
        configured, supported = getattr(policy, key), getattr(capabilities, key)
        if configured > supported:
            raise ConfigError(
                f"batch.{key}: {configured:,} is above the limit of {name}: {supported:,}"
            )
    window = policy.completion_window
    if capabilities.windows is not None and window not in capabilities.windows:
        supported_windows = ", ".join(sorted(capabilities.windows))
        raise ConfigError(
            f"batch.completion_window: {name} supports {supported_windows}, not {window}"
        )


def _open(name: str, provider: Provider, provider_type: type[BatchProvider]) -> BatchProvider:
    try:
        return provider_type.from_config(provider)
    except ConfigError as error:
        raise ConfigError(f"providers.{name}: {error}") from None
