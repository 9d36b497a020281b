"""The operator's command line, run in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess

from tests.support.batch_fixture import Bench
from tests.support.fork_server import run_forked


async def scheduler(b: Bench, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m scheduler` with the fleet's Redis and no provider key."""
    return await asyncio.to_thread(_scheduler, b.url, *command)


def _scheduler(url: str, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_forked(["scheduler", *command], os.environ | {"FLEET_REDIS_URL": url, **env})
