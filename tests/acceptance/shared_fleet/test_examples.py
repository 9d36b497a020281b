"""The examples, run as a person starts them."""

import subprocess
import sys

from config.settings import ROOT
from tests.acceptance.conftest import Up

#: The calls of the orchestrator and its agent, and the lane that each must print.
CALLS = {
    "process_request": "realtime (no cheaper lane fits)",
    "route_completion": "realtime (asked for)",
    "batch_generate": "local (asked for)",
    "retrieve_batch_results": "batch (asked for)",
    "process_with_optimization": "realtime (no cheaper lane fits)",
}


def test_the_orchestrator_example_runs_each_call_on_its_lane(up: Up) -> None:
    command = [sys.executable, str(ROOT / "examples" / "orchestrator.py"), up.url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    for call, lane in CALLS.items():
        assert f"{call}: {lane}" in result.stdout
    assert "by latency-based-routing" in result.stdout
    assert "monitor_batch: 3 of 3, 0 failed" in result.stdout
