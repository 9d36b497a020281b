"""The accounts that a configuration needs for its batches."""

from __future__ import annotations

from config.batch import Batch
from config.fleet import FleetConfig
from config.provider import Deployment, Provider
from primarch_fleet.contract import CompletionRequest, EmbeddingRequest
from primarch_fleet.errors import ConfigError
from scheduler.providers import PROVIDERS
from scheduler.providers.base import BatchProvider, Capabilities

#: The path of a request, by the kind of the model that answers it.
ENDPOINTS = {kind.kind: kind.endpoint for kind in (CompletionRequest, EmbeddingRequest)}


def open_accounts(config: FleetConfig) -> dict[str, BatchProvider]:
    """The account of each provider that serves batches, by its name in the configuration.

    Raises ConfigError, which names the entry: for a provider that has no batches or whose account
    is not given, a deployment that its batches do not serve, and a limit above its own.
    """
    kinds: dict[str, type[BatchProvider]] = {}
    for deployment in config.deployments:
        if deployment.batch:
            name = deployment.provider
            kinds[name] = _kind(name, config.providers[name])
            _check_endpoint(deployment, kinds[name].capabilities)
    for name, kind in kinds.items():
        _check_limits(name, config.batch, kind.capabilities)
    return {name: _open(name, config.providers[name], kind) for name, kind in kinds.items()}


def _kind(name: str, provider: Provider) -> type[BatchProvider]:
    try:
        return PROVIDERS[provider.litellm_provider]
    except KeyError:
        raise ConfigError(
            f"providers.{name}: batches are known at {', '.join(PROVIDERS)}, not at "
            f"{provider.litellm_provider}; take `batch: true` off its deployments"
        ) from None


def _check_endpoint(deployment: Deployment, can: Capabilities) -> None:
    endpoint = ENDPOINTS[deployment.kind]
    if endpoint not in can.endpoints:
        raise ConfigError(
            f"deployments.{deployment.id}: {deployment.provider} has no batches of {endpoint}; "
            "take `batch: true` off it"
        )


def _check_limits(name: str, policy: Batch, can: Capabilities) -> None:
    for key in ("max_requests", "max_bytes"):
        asked, most = getattr(policy, key), getattr(can, key)
        if asked > most:
            raise ConfigError(f"batch.{key}: {asked:,} are too many for {name}: at most {most:,}")
    window = policy.completion_window
    if can.windows is not None and window not in can.windows:
        raise ConfigError(
            f"batch.completion_window: {name} knows {', '.join(sorted(can.windows))}, not {window}"
        )


def _open(name: str, provider: Provider, kind: type[BatchProvider]) -> BatchProvider:
    try:
        return kind.from_config(provider)
    except ConfigError as error:
        raise ConfigError(f"providers.{name}: {error}") from None
