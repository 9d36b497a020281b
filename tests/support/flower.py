"""Flower in a process of its own, and what it replies."""

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config.settings import ROOT
from tests.support.workers import eventually
from workers.onebox.ports import free_port


@contextmanager
def running_flower(
    redis_url: str, folder: Path, login: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process of a Flower that answers, and its address; it is killed at the end."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    env = {"FLEET_REDIS_URL": redis_url, "FLEET_DATA_DIR": str(folder), "FLOWER_BASIC_AUTH": login}
    command = [sys.executable, "-m", "celery", "-A", "scheduler.flower", "flower", f"--port={port}"]

    def answers() -> bool:
        try:
            return bool(ask_flower(url, login, "/api/queues/length"))
        except OSError:
            return False

    with subprocess.Popen(command, cwd=ROOT, env=os.environ | env) as process:
        try:
            eventually(answers, timeout=40)
            yield process, url
        finally:
            process.terminate()


def ask_flower(
    url: str,
    login: str,
    path: str,
    data: dict[str, Any] | None = None,
    timeout_seconds: float = 30,
) -> str:
    """The reply of Flower, whatever its status, to a GET or to a POST with data."""
    body = None if data is None else urllib.parse.urlencode(data).encode()
    token = base64.b64encode(login.encode()).decode()
    request = urllib.request.Request(url + path, body, {"Authorization": f"Basic {token}"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
