"""The data folder of the one-machine fleet that a command means."""

from __future__ import annotations

import os
from pathlib import Path

from config.settings import settings
from primarch_fleet.cli.address import DATA_DIR


def data_dir() -> Path:
    """Return the data folder of the fleet: FLEET_DATA_DIR, or of this folder or the checkout."""
    here = Path(os.environ.get("FLEET_DATA_DIR") or DATA_DIR)
    return (here if here.is_dir() else settings().data_dir).resolve()
