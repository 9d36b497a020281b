"""Opens the provider accounts that a configuration needs for its batches."""

from __future__ import annotations

from config.batch import Batch
from config.fleet import FleetConfig
from config.provider import Provider
from primarch_fleet.errors import ConfigError
from scheduler.providers import PROVIDERS
from scheduler.providers.base import BatchProvider, Capabilities


def open_accounts(config: FleetConfig) -> dict[str, BatchProvider]:
    """Open the account of each provider that serves batches, by its name in the configuration.

    Args:
        config: Without contradictions, as `load` returns it: the providers have batches of the
            models.

    Raises:
        ConfigError: An account is not configured, or a limit of `batch` is above its own. The
            message names the entry.
    """
    provider_types = {
        deployment.provider: PROVIDERS[config.providers[deployment.provider].litellm_provider]
        for deployment in config.deployments
        if deployment.batch
    }
    for name, provider_type in provider_types.items():
        _check_limits(name, config.batch, provider_type.capabilities)
    return {
        name: _open(name, config.providers[name], provider_type)
        for name, provider_type in provider_types.items()
    }


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
