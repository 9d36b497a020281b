"""Scales a running one-machine fleet: `fleet scale realtime=4`, `make up REALTIME=4`.

supervisord's configuration in the data folder names the workers that are wanted. A change of the
fleet is a change of this file, which supervisord then reads again. A command that is killed in
between leaves a state from which the next one continues.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

from config.fleet import load
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError
from workers.onebox.addresses import write_addresses
from workers.onebox.lane_workers import LaneWorker, lane_workers
from workers.onebox.ports import Ports, metrics_address
from workers.onebox.private_file import write_private
from workers.onebox.processes import program
from workers.onebox.running_fleet import RunningFleet, changing
from workers.onebox.worker_group import WORKERS_GROUP


@dataclass
class Scaled:
    """What a command has changed."""

    #: Worker processes by lane, of the lanes that the command named.
    workers: dict[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def sentences(self) -> Iterator[str]:
        """Yield what a person needs to know, before the workers have started and stopped."""
        for lane, count in self.workers.items():
            started = [f"{name} starts" for name in self.started if lane_of(name) == lane]
            stopped = [f"{name} stops" for name in self.stopped if lane_of(name) == lane]
            changes = ", ".join(started + stopped) or "nothing to do"
            yield f"{lane}: {count} worker processes; {changes}"


def lane_of(worker: str) -> str:
    """Return the lane of a worker by its name."""
    return worker.rpartition("-")[0]


def scale(
    data_dir: Path, counts: Mapping[Lane, int], say: Callable[[str], object] = lambda _: None
) -> Scaled:
    """Give lanes of a running fleet other numbers of workers, and wait until they are so.

    The other workers go on. Workers that stop first end or return the requests that they have.

    Args:
        data_dir: The folder of the fleet.
        counts: Worker processes by lane; on the local lane per engine.
        say: Gets sentences for a person.

    Raises:
        ConfigError: No fleet runs there or it still starts, another command scales it, an engine
            has too few GPUs, or a worker does not start.
        FleetUnavailable: The broker did not answer.
    """
    with changing(data_dir) as fleet:
        scaled = _Scaling(fleet).change(counts)
        for sentence in scaled.sentences():
            say(sentence)
        fleet.wait_until_ready(set(scaled.started))
        fleet.wait_until_stopped(scaled.stopped)
        fleet.supervisor.update()
    return scaled


class _Scaling:
    """The change of the numbers of workers."""

    def __init__(self, fleet: RunningFleet) -> None:
        self._data_dir, self._supervisor = fleet.data_dir, fleet.supervisor
        self._startup, self._addresses = fleet.startup, fleet.addresses

    def change(self, counts: Mapping[Lane, int]) -> Scaled:
        """Change the configuration and the processes, without waiting for them."""
        workers = self._workers(counts)
        wanted = {worker.name for worker in workers}
        alive = self._supervisor.alive()
        surplus = sorted(name for name in alive - wanted if lane_of(name) in counts)
        self._write(counts, workers)
        known = set(self._supervisor.workers())
        self._supervisor.update()
        for name in sorted((wanted & known) - alive):
            self._supervisor.start_worker(name)
        for name in surplus:
            self._supervisor.stop_worker(name)
        if "batch" in counts:
            self._supervisor.set_running("beat", counts["batch"] > 0)
        return Scaled(
            workers={lane: sum(worker.lane == lane for worker in workers) for lane in counts},
            started=sorted(wanted - alive),
            stopped=surplus,
        )

    def _workers(self, counts: Mapping[Lane, int]) -> list[LaneWorker]:
        engines = load(Path(self._startup["config_file"])).engines if counts.get("local") else []
        if counts.get("local") and not engines:
            raise ConfigError(f"local: {self._startup['config_file']} has no engine")
        return [
            worker
            for lane, count in counts.items()
            for worker in lane_workers(lane, count, engines)
        ]

    def _write(self, counts: Mapping[Lane, int], workers: list[LaneWorker]) -> None:
        """Write the ports, supervisord's configuration, and the addresses."""
        path = self._data_dir / "supervisord.conf"
        config = RawConfigParser()
        config.read(path)
        group = config[f"group:{WORKERS_GROUP}"]
        before = [name for name in group["programs"].split(",") if name]
        others = [name for name in before if lane_of(name) not in counts]
        gone = set(before) - {worker.name for worker in workers} - set(others)
        for name in gone:
            config.remove_section(f"program:{name}")
            self._addresses.pop(f"metrics of {name}", None)
        ports = Ports(self._data_dir / "ports.yaml")
        for worker in workers:
            if worker.name in before:
                continue
            port = ports.choose(worker.metrics)
            self._addresses[worker.metrics] = metrics_address(port)
            process = worker.process(port, Path(self._startup["engine_python"]))
            config[f"program:{worker.name}"] = program(
                process, self._data_dir, self._startup["drain_timeout_seconds"]
            )
        group["programs"] = ",".join([*others, *(worker.name for worker in workers)])
        text = io.StringIO()
        config.write(text)
        # supervisord's configuration last: it decides which workers the next command keeps.
        write_private(self._data_dir / "ports.yaml", ports.text())
        write_addresses(self._data_dir, self._addresses)
        write_private(path, text.getvalue())
