"""Whether the Redis server keeps what workers store: one warning at the start of a worker."""

from __future__ import annotations

import logging

import redis

from primarch_fleet.redis_server_info import ServerInfo, read_server_info

logger = logging.getLogger(__name__)


def risks(info: ServerInfo) -> dict[str, str]:
    """Return the settings of a server by which requests or results may be lost, and what to set.

    By name: `eviction` or `persistence`.
    """
    found = {}
    if info.eviction_policy not in ("noeviction", ""):
        found["eviction"] = (
            f"maxmemory-policy is {info.eviction_policy}, so results are removed when its memory "
            "is full: set noeviction"
        )
    if not info.appendonly:
        found["persistence"] = "appendonly is no, so a restart loses what was stored last: set yes"
    return found


def check_server(client: redis.Redis) -> None:
    """Log one warning if the server may lose requests or results, or if that cannot be read.

    Log another one if its version has known vulnerabilities.

    Raises:
        redis.ConnectionError: Or redis.TimeoutError: the server did not answer.
    """
    info = read_server_info(client)
    if info is None or not info.run_id:
        logger.warning(
            "eviction and persistence of Redis are not checked: its user may not call INFO",
            extra={"action": "redis_check_skipped"},
        )
    elif found := risks(info):
        text = "Redis may lose requests and results: %s"
        logger.warning(text, "; ".join(found.values()), extra={"action": "redis_unsafe"})
    if info is not None and (advice := info.version.advice()):
        logger.warning("%s: SECURITY.md", advice, extra={"action": "redis_outdated"})
