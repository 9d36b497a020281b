"""Processes on a host whose wall clock is wrong; their monotonic clock stays right."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.chaos.mixed.processes import build_clock, set_clock

#: The file with the seconds by which the clock is ahead.
OFFSET = "offset"


def host_clock(folder: Path, seconds: float) -> dict[str, str]:
    """The environment of a Python process whose clock is ahead; skips without a C compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    library = build_clock(folder)
    if library is None:
        pytest.skip("needs a C compiler")
    (folder / OFFSET).write_bytes(struct.pack("d", seconds))
    return {
        "LD_PRELOAD": str(library),
        "FLEET_TEST_CLOCK": str(folder / OFFSET),
        "PYTHONPATH": str(Path(__file__).parent),
    }


def set_host_clock(folder: Path, seconds: float) -> None:
    """Set the clock of the running processes of `host_clock`."""
    set_clock(folder / OFFSET, seconds)
