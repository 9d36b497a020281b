"""Which of the workers of one queue takes a message: the one whose prefix cache has its beginning.

Producers name a message's prefixes in a header (primarch_fleet/wire.py); lua/fetch_near.lua has the
rule, and keeps who owns which prefix in Redis, under `fleet:affinity:<queue>:`. Messages without
the header, and workers without affinity, work as ever.
"""

import os
import socket
import uuid

#: Seconds that messages wait for an owner that does not fetch.
PATIENCE = 0.25
#: Seconds that those of a full owner are left for last, by workers that have others to choose.
PATIENCE_FULL = 5.0
#: Times the average load up to which a worker takes messages for their prefixes' sake; at least 1.
SLACK = 1.25
#: Messages up to which it does so in any case: an engine answers a few as fast as one.
LEAST = 4
#: Messages of a list that a fetch passes over at most.
WINDOW = 32
#: Prefixes that a queue remembers: those last used.
REMEMBERED = 20_000


def unique_name() -> str:
    """A name that no other process has, nor ever had: an engine's cache ends with its process."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def keys(queue: str, prefix: str = "") -> list[str]:
    """The keys of a queue's owners, last uses and workers, under a prefix for all keys."""
    return [f"{prefix}fleet:affinity:{queue}:{name}" for name in ("owners", "recent", "workers")]


def arguments(worker: str, held: int) -> list[str | float]:
    """What lua/fetch_near.lua is told behind the tags.

    Args:
        worker: The name of the worker that fetches.
        held: Messages that it holds.
    """
    return [worker, held, PATIENCE, PATIENCE_FULL, SLACK, LEAST, WINDOW, REMEMBERED]
