"""Where the test servers write: in memory if possible, so that each write may wait for its disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

#: A file system in memory, on Linux.
MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it has a random name
#: Containers often have 64 MiB there.
MIN_FREE_BYTES = 2 << 30


class ServerFolder(NamedTuple):
    """A folder for a server's files, and how it should write them."""

    path: Path
    config: dict[str, str]


@contextmanager
def server_folder() -> Iterator[ServerFolder]:
    """Make a folder for the files of a server, and remove it at the end of the block.

    A batch is ordered when its order is on the disk. With `everysec` that takes up to a second.
    """
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MIN_FREE_BYTES
    config = {"appendonly": "yes", "appendfsync": "always" if in_memory else "everysec"}
    with tempfile.TemporaryDirectory(prefix="valkey-", dir=MEMORY if in_memory else None) as name:
        yield ServerFolder(Path(name) / "data", config)
