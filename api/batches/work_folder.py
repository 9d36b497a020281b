"""Folders for the files of batches that run. They hold prompts, so none outlives its process.

A process that is killed cannot remove its folders. Each is locked as long as its process lives, so
the next process of this machine that starts knows which ones are left over.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK = "fleet-batch-", "lock"


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder for the block, which only this user can read."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def remove_left_over(min_age_seconds: float = 60.0) -> None:
    """Remove the folders of processes that were killed.

    Args:
        min_age_seconds: A younger folder stays: its process may not have locked it yet.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # of another user, or in use
            if time.time() - folder.stat().st_mtime < min_age_seconds:
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
