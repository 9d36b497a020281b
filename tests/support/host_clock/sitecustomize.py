"""Sets the wall clock of this process, as FLEET_TEST_CLOCK says: tests/chaos/mixed/clock.c."""

import ctypes
import os

if "FLEET_TEST_CLOCK" in os.environ:
    assert ctypes.CDLL(None).chaos_clock(os.environ["FLEET_TEST_CLOCK"].encode()) == 0
