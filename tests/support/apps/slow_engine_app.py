"""A local worker whose simulated engine takes seconds for an answer."""

import os

from workers.local.app import app
from workers.local.engines import simulated

__all__ = ["app"]

simulated.SECONDS_PER_TOKEN = float(os.environ.get("FLEET_TEST_SECONDS_PER_TOKEN", "0.4"))
