"""The server of a process's Prometheus metrics, at FLEET_METRICS_HOST and FLEET_METRICS_PORT."""

from __future__ import annotations

from typing import Any

from prometheus_client import start_http_server

from config.settings import settings
from primarch_fleet.errors import ConfigError


def start_metrics_server() -> Any:
    """Serve the process's metrics on a thread and return the server.

    Raises:
        ConfigError: The port is taken, or the host is none of this machine's addresses.
    """
    host, port = settings().metrics_host, settings().metrics_port
    try:
        server, _ = start_http_server(port, host)
    except OSError as error:
        raise ConfigError(
            f"FLEET_METRICS_PORT: no metrics can be served at {host}:{port}: {error.strerror}"
        ) from None
    return server
