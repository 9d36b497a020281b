"""Flower with a login: `celery -A scheduler.flower flower`. Run one.

Flower's buttons and its API act only where there is a login. Without FLOWER_BASIC_AUTH and
FLOWER_AUTH, the first start makes a password, prints it and keeps it in the data folder.
"""

from __future__ import annotations

import os
import sys

from config.settings import settings
from primarch_fleet.errors import ConfigError
from tasks.app import app
from workers.observability.flower_login import BASIC_AUTH, flower_login

__all__ = ["app"]

try:
    _login = flower_login(settings().data_dir, os.environ)
except ConfigError as error:
    raise SystemExit(f"flower: {error}") from None
if _login:
    # Flower reads its options from the environment after this import; a command line would show
    # the password to every user of the machine.
    os.environ[BASIC_AUTH] = _login.basic_auth
    if _login.announcement:
        sys.stderr.write(f"{_login.announcement}\n")
