"""Engines by the name that fleet.yaml gives them; each is imported only where it is used."""

from __future__ import annotations

from importlib import import_module

from config.fleet import Engine as EngineConfig
from workers.local.engines.base import Engine


async def start(config: EngineConfig) -> Engine:
    """The engine of a model, loaded and ready. Raises EngineError or ConfigError if it cannot."""
    module = import_module(f"workers.local.engines.{config.engine}")
    engine: Engine = await module.start(config)
    return engine
