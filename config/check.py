"""The check of `fleet check-config`: fleet.yaml, and the environment that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from config.fleet import FleetConfig, load
from config.provider import call_params
from config.yaml_file import YamlFile
from primarch_fleet.errors import ConfigError


def problems(path: Path, *, environment: bool = True) -> list[str]:
    """Return what is wrong with a configuration: `file:line: key: what to change`.

    Args:
        path: fleet.yaml.
        environment: Whether the environment must have the variables that the file names.
    """
    try:
        config = load(path)
    except ConfigError as error:
        return str(error).splitlines()
    if not environment:
        return []
    file = YamlFile(path)
    return list(dict.fromkeys(file.report((), text) for text in _unset_variables(config)))


def _unset_variables(config: FleetConfig) -> Iterator[str]:
    for deployment in config.deployments:
        try:
            call_params(config.providers[deployment.provider], deployment)
        except ConfigError as error:
            yield str(error)
