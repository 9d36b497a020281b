"""The connections that kombu keeps in a process, for all apps with the same URL."""

import kombu.pools


def replace_connections() -> None:
    """Close the pooled connections. The pools stay: apps refer to them."""
    for pool in (*kombu.pools.producers.values(), *kombu.pools.connections.values()):
        pool.resize(pool.limit, reset=True)  # a pool that is only closed has no connections at all


def close_pools(port: int) -> None:
    """Close the pools for a server and forget them: an app that connects gets another pool."""
    for group in (kombu.pools.producers, kombu.pools.connections):
        for key, pool in list(group.items()):
            connections = getattr(pool, "connections", pool)
            if f":{port}/" in connections.connection.as_uri():
                pool.force_close_all()
                group.pop(key)  # `del` would hash the key again
