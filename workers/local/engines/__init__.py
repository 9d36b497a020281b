"""Engines by the name that fleet.yaml gives them; each is imported only where it is used."""

from __future__ import annotations

from importlib import import_module

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError
from workers.local.engines.base import Engine


async def start(config: EngineConfig) -> Engine:
    """The engine of a model, loaded and ready. Raises EngineError or ConfigError if it cannot."""
    try:
        module = import_module(f"workers.local.engines.{config.engine}")
    except ImportError as error:
        raise ConfigError(
            f"engines: {config.model}: this Python has no {config.engine} that the fleet knows: "
            f"{error}. `make engine` makes one that has; FLEET_ENGINE_PYTHON names another"
        ) from error
    engine: Engine = await module.start(config)
    return engine
