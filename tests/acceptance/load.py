"""Commands and load for a fleet that `make up` runs, and what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from primarch_fleet.ticket import Ticket
from tests.acceptance.conftest import Up

MODELS: dict[Lane, str] = {"realtime": "gpt-4o-mini", "local": "smollm2-135m"}


def environment(folder: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return env | {"FLEET_DATA_DIR": str(folder)}


def command(*arguments: str) -> list[str]:
    """The command `fleet` with arguments."""
    return [sys.executable, "-m", "primarch_fleet", *arguments]


def run_command(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `fleet` with arguments for the fleet on a data folder."""
    result = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(folder), capture_output=True, text=True
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


class Load(threading.Thread):
    """Submits requests to the realtime and the local lane in turn, until it is stopped."""

    def __init__(self, fleet: Fleet, pause_seconds: float) -> None:
        super().__init__()
        self._fleet, self._pause_seconds = fleet, pause_seconds
        self._stopped = threading.Event()
        self.tickets: list[Ticket] = []

    def run(self) -> None:
        while not self._stopped.wait(self._pause_seconds):
            text = f"request {len(self.tickets)}"
            self.tickets += self._fleet.submit_many(
                [
                    CompletionRequest(
                        model=model,
                        lane=lane,
                        messages=[{"role": "user", "content": text}],
                        max_completion_tokens=20,
                    )
                    for lane, model in MODELS.items()
                ]
            )

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def calls_by_text(up: Up) -> Counter[str]:
    """How often the simulated provider was asked each question."""
    root = up.addresses["simulated provider"].removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/simulator/requests") as response:
        received: list[dict[str, Any]] = json.load(response)
    return Counter(
        call["body"]["messages"][0]["content"]
        for call in received
        if call["path"].endswith("/chat/completions")
    )
