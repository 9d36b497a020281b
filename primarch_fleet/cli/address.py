"""The address of a running fleet's Redis, as a command finds it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from primarch_fleet.errors import ConfigError

#: What `make up` writes into its data folder once the fleet answers.
ADDRESSES = "addresses.yaml"
#: The data folder of `make up` in the folder where it was started.
DATA_DIR = ".fleet"
_REDIS = re.compile(r"^redis: *['\"]?(\S+?)['\"]?$", re.MULTILINE)


def find_fleet() -> str:
    """Return FLEET_REDIS_URL, or the Redis of the fleet that `make up` started in this folder.

    Raises:
        ConfigError: There is neither.
    """
    if url := os.environ.get("FLEET_REDIS_URL"):
        return url
    path = Path(os.environ.get("FLEET_DATA_DIR") or DATA_DIR) / ADDRESSES
    try:
        found = _REDIS.search(path.read_text())
    except OSError:
        found = None
    if found is None:
        raise ConfigError(
            f"no fleet found: set FLEET_REDIS_URL, or start one here with `make up` ({path})"
        )
    return found[1]
