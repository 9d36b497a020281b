"""The examples run as a person starts them."""

import subprocess
import sys

from config.settings import ROOT
from tests.acceptance.conftest import Up

#: The calls of an orchestrator and of its agent, and the lane that each shows.
CALLS = {
    "process_request": "realtime (no cheaper lane fits)",
    "route_completion": "realtime (asked for)",
    "batch_generate": "local (asked for)",
    "retrieve_batch_results": "batch (asked for)",
    "process_with_optimization": "realtime (no cheaper lane fits)",
}


def test_the_orchestrator_shows_each_of_its_calls_on_its_lane(up: Up) -> None:
    command = [sys.executable, str(ROOT / "examples" / "orchestrator.py"), up.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr
    for call, lane in CALLS.items():
        assert f"{call}: {lane}" in ended.stdout
    assert "by latency-based-routing" in ended.stdout
    assert "monitor_batch: 3 of 3, 0 failed" in ended.stdout
