"""What the endpoints share in a process: the fleet's client, Redis and the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api.keys import KeyFile, Keys
from config.api import Api
from primarch_fleet import AsyncFleet


@dataclass(frozen=True)
class Services:
    """The record that every call gets."""

    fleet: AsyncFleet
    #: Replies in bytes.
    redis: Any
    key_file: KeyFile
    #: Seconds for which results are kept, and with them responses and files.
    result_seconds: int

    @property
    def config(self) -> Api:
        """The `api` section of fleet.yaml, as it is now."""
        return self.key_file.section()

    @property
    def keys(self) -> Keys:
        """The bearer keys, as they are now."""
        return Keys(self.config.keys)
