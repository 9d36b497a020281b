"""Dead letters of a test's own: any text, as if a worker had given it up."""

from __future__ import annotations

import json
from dataclasses import asdict

import redis

from workers.runtime.dead_letters import DEAD_LETTERS, DeadLetter


def bury(
    client: redis.Redis, message: str, kind: str = "undecodable", error: str = "it is broken"
) -> None:
    """Make a message of the realtime queue a dead letter, the newest."""
    letter = asdict(DeadLetter(kind, "realtime", error, message))
    client.lpush(DEAD_LETTERS, json.dumps(letter | {"at": 1_800_000_000.0}))
