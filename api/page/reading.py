"""Reading for the page: in a thread, since the functions of the command line block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from api.services import Services

T = TypeVar("T")
#: Rows that a table shows.
MAX_ROWS = 100
#: Reads at the same time in one process; others wait. They share threads with calls of the API.
_MAX_READS = 4
_slots = asyncio.Semaphore(_MAX_READS)


class Rows(NamedTuple):
    """The first rows of a table."""

    shown: Sequence[object]
    #: How many there are besides.
    more: int

    @classmethod
    def of(cls, rows: Sequence[object], limit: int = MAX_ROWS) -> Rows:
        """Return the first rows of all."""
        return cls(rows[:limit], max(0, len(rows) - limit))


async def read(services: Services, function: Callable[[Services], T]) -> T:
    """Return what a function that blocks returns for the services."""
    async with _slots:
        return await asyncio.to_thread(function, services)
