"""The workers of a lane on one machine: their names, and how each starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from config.engine import EngineConfig
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError
from workers.local.gpu_assignment import assign_gpus
from workers.onebox.processes import Process, Stage, celery

#: More processes of a lane than this on one machine are a mistake.
MAX_WORKERS = 100
#: How long vLLM may take to load a model or to fail.
ENGINE_START_SECONDS = 900
_APPS: Mapping[Lane, str] = {
    "realtime": "workers.realtime.app",
    "local": "workers.local.app",
    "batch": "scheduler.app",
}


class LaneWorker(NamedTuple):
    """A worker: its lane, its name, and what selects its engine."""

    lane: Lane
    name: str
    env: Mapping[str, str]
    #: Whether it runs in the Python that has vLLM.
    has_vllm: bool

    @property
    def metrics(self) -> str:
        """The name of its metrics among the addresses."""
        return f"metrics of {self.name}"

    def process(self, port: int, engine_python: Path) -> Process:
        """Return the process that runs it.

        Args:
            port: Where it serves its metrics.
            engine_python: The Python that has vLLM.
        """
        env = {"FLEET_METRICS_PORT": str(port), **self.env}
        command = celery(_APPS[self.lane], "worker", "-l", "INFO", "-n", f"{self.name}@%h")
        process = Process(self.name, command, Stage.WORKERS, env)
        if not self.has_vllm:
            return process
        # An engine that fails is tried again without limit.
        python = str(engine_python)
        return replace(
            process,
            command=[python if arg == sys.executable else arg for arg in command],
            start_seconds=ENGINE_START_SECONDS,
            start_retries=10**6,
        )


def lane_workers(
    lane: Lane, count: int | None, engines: Iterable[EngineConfig]
) -> list[LaneWorker]:
    """Return the workers of a lane. With another count each keeps its name and its GPUs.

    Args:
        lane: The lane.
        count: Of worker processes; on the local lane per engine, and None for the engine's
            `data_parallel_size`.
        engines: Those of this machine.

    Raises:
        ConfigError: Two engines would share a GPU, or an engine has too few for its workers.
    """
    if lane != "local":
        return [LaneWorker(lane, f"{lane}-{n}", {}, False) for n in range(1, (count or 0) + 1)]
    return [
        LaneWorker(lane, f"local-{place.number}", place.env, place.engine.engine == "vllm")
        for place in assign_gpus(engines, count)
    ]


def worker_count(text: str) -> int:
    """Read the number of a lane's worker processes. Raises ConfigError."""
    if not (text.isdecimal() and text.isascii() and int(text) <= MAX_WORKERS):
        raise ConfigError(f"{text!r} is not a number of processes (0 to {MAX_WORKERS})")
    return int(text)
