"""Files of events, one JSON object a line, which several processes may append to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """Appends events; each is in the file once `write` has returned, whatever then kills us.

    Times are those of the monotonic clock, which all processes of a host share and no test sets.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def write(self, event: str, /, **fields: Any) -> None:
        """Append an event with the present time."""
        line = json.dumps({"event": event, "at": time.monotonic(), **fields})
        os.write(self._file, line.encode() + b"\n")

    def clock_error_seconds(self) -> float:
        """Return how far the wall clock of this process is ahead of the kernel's.

        The kernel has stamped the file at the last event, which must be of this moment.
        """
        return time.time() - os.fstat(self._file).st_mtime


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a file, oldest first; none if there is no file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)
