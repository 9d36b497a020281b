"""What the endpoints share in a process: the fleet's client, Redis and the configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.keys import KeyFile, Keys
from config.api import Api
from primarch_fleet import AsyncFleet, Catalogue

#: Seconds for which a catalogue that was read is good enough.
CATALOGUE_SECONDS = 5.0


class CatalogueReader:
    """The catalogue for an event loop: most calls get it without a thread.

    Args:
        fleet: Reads it.
        clock: Returns monotonic seconds.
    """

    def __init__(self, fleet: AsyncFleet, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._clock = fleet, clock
        self._catalogue: Catalogue | None = None
        self._read_at = 0.0

    async def get(self) -> Catalogue:
        """Return the catalogue. Raises NoCatalogue and FleetUnavailable, as `Fleet` does."""
        now = self._clock()
        if self._catalogue is None or now >= self._read_at:
            self._catalogue = await self._fleet.catalogue()
            self._read_at = now + CATALOGUE_SECONDS
        return self._catalogue


@dataclass(frozen=True)
class Services:
    """The record that every call gets."""

    fleet: AsyncFleet
    #: Of the fleet's Redis.
    url: str
    #: Replies in bytes.
    redis: Any
    key_file: KeyFile
    catalogue: CatalogueReader
    #: Seconds for which results are kept, and with them responses and files.
    result_seconds: int

    @property
    def config(self) -> Api:
        """The `api` section of fleet.yaml, as it is now."""
        return self.key_file.section

    @property
    def keys(self) -> Keys:
        """The bearer keys, as they are now."""
        return Keys(self.config.keys)
