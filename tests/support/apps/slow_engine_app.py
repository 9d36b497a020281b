"""The local worker with a simulated engine that takes seconds for an answer."""

import os

from workers.local.app import app
from workers.local.engines import simulated

__all__ = ["app"]

simulated.TIME_PER_TOKEN = float(os.environ.get("FLEET_TEST_TIME_PER_TOKEN", "0.4"))
