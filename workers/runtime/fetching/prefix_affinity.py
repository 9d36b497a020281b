"""Prefix affinity: a message goes to the worker whose prefix cache has the start of its prompt.

Producers name a message's prefixes in a header (primarch_fleet/protocol.py).
lua/fetch_by_prefix.lua decides which of a queue's workers takes a message, and stores the owner of
each prefix in Redis, under `fleet:affinity:<queue>:`. Messages without the header, and workers
without affinity, are not affected.
"""

import os
import socket
import uuid
from typing import NamedTuple


class AffinityLimits(NamedTuple):
    """How far a fetch goes to bring messages to the owners of their prefixes."""

    #: Seconds after its last fetch for which messages wait for an owner. A live worker fetches
    #: twice in it.
    patience_seconds: float = 3.0
    #: The same for an owner that was full: other workers take its messages last.
    full_patience_seconds: float = 5.0
    #: A worker takes messages for their prefixes up to so many times the average load; at least 1.
    max_load_factor: float = 1.25
    #: It does so in any case up to so many messages: an engine answers a few as fast as one.
    min_load: int = 4
    #: Messages of a list that a fetch passes over at most.
    max_passed_over: int = 32
    #: Prefixes that a queue remembers: those used last.
    max_prefixes: int = 20_000


#: The limits of this worker.
LIMITS = AffinityLimits()


def unique_name() -> str:
    """Return a name that no process has or ever had: an engine's cache ends with its process."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def keys(queue: str) -> list[str]:
    """Return the keys of a queue's prefix owners, last uses and workers."""
    return [f"fleet:affinity:{queue}:{name}" for name in ("owners", "recent", "workers")]
