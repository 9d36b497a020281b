"""The Redis server as alerts see it: its memory, its settings, and its certificate."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis
from prometheus_client.core import GaugeMetricFamily

from primarch_fleet.redis_server_info import ServerInfo, read_server_info
from primarch_fleet.redis_url import normalized, tls_options
from scheduler.fleet_metrics.base import RedisCollector
from workers.observability.server_check import risks

#: Seconds that the server may take to connect, and to answer each step of the TLS handshake.
TIMEOUT_SECONDS = 2.0
#: What `risks` may return.
_SETTINGS = ("eviction", "persistence")


class RedisServer(RedisCollector):
    """What the Redis server says about itself, read at each scrape.

    Args:
        client: Of the server.
        url: Of the server.
    """

    action = "redis_metrics_failed"

    def __init__(self, client: redis.Redis, url: str) -> None:
        super().__init__(client)
        self._url = url

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Ask the server; what it does not tell has no samples."""
        memory = GaugeMetricFamily(
            "primarch_redis_memory_bytes",
            "Bytes of the memory of Redis, by state: used, or max (maxmemory, without it the "
            "memory of its machine)",
            labels=["state"],
        )
        warnings = GaugeMetricFamily(
            "primarch_redis_warning",
            "1 if there is a risk with Redis, else 0, by risk: eviction (of results), persistence "
            "(no append-only file), version (has known vulnerabilities), certificate (not "
            "verified, by Flower's URL)",
            labels=["risk"],
        )
        expiry = GaugeMetricFamily(
            "primarch_redis_certificate_expiry_timestamp_seconds",
            "When the certificate of Redis expires, in Unix seconds; absent without TLS, and if "
            "the certificate is not verified",
        )
        tls = tls_options(self._url)
        if info := read_server_info(self._redis):
            memory.add_metric(["used"], info.used_memory_bytes)
            memory.add_metric(["max"], info.max_memory_bytes)
            for risk, exists in _risks(info).items():
                warnings.add_metric([risk], exists)
        is_verified = tls is not None and _is_verified(tls)
        if tls is not None:
            warnings.add_metric(["certificate"], not is_verified)
        yield from (memory, warnings)
        if is_verified:
            expiry.add_metric([], certificate_expiry(self._url))
            yield expiry


def certificate_expiry(url: str) -> float:
    """Return when the certificate that a server presents now expires, in Unix seconds.

    Args:
        url: Of a server with TLS, whose certificate is verified.

    Raises:
        OSError: No connection, or the certificate is refused, for example because it has expired.
    """
    options, parts = tls_options(url) or {}, urlsplit(normalized(url))
    context = ssl.create_default_context()
    if authorities := options.get("ssl_ca_certs"):
        context.load_verify_locations(authorities)
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    host = str(parts.hostname)
    with (
        socket.create_connection((host, parts.port or 6379), TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        presented: Any = connection.getpeercert()
        return ssl.cert_time_to_seconds(presented["notAfter"])


def _risks(info: ServerInfo) -> dict[str, bool]:
    found = risks(info)
    return {
        **{setting: setting in found for setting in _SETTINGS},
        "version": bool(info.version.advice()),
    }


def _is_verified(tls: dict[str, Any]) -> bool:
    checks_name = tls.get("ssl_check_hostname", True)
    return tls["ssl_cert_reqs"] == ssl.CERT_REQUIRED and bool(checks_name)
