"""The engines, by their names in fleet.yaml; each is imported only when it is used."""

from __future__ import annotations

from importlib import import_module

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError
from workers.local.engines.base import Engine


async def start(config: EngineConfig) -> Engine:
    """Load the engine of a model and return it ready.

    Raises:
        ConfigError: The engine is not installed in this Python, or refuses the settings.
        EngineError: The engine does not start on this hardware.
    """
    try:
        module = import_module(f"workers.local.engines.{config.engine}")
    except ImportError as error:
        raise ConfigError(
            f"engines: {config.model}: {config.engine} is not installed in this Python: {error}; "
            "run `make engine`, or set FLEET_ENGINE_PYTHON to a Python that has it"
        ) from error
    engine: Engine = await module.start(config)
    return engine
