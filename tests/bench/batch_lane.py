"""Starts the batch lane's processes for benchmarks, and watches their memory and CPU."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis
import yaml

from config.fleet import load
from config.settings import settings
from primarch_fleet.parts import in_parts
from tests.bench.processes import process, wait_for
from tests.support.redis_server import redis_server
from workers.onebox.simulated import BATCH as SIMULATED_BATCH
from workers.onebox.simulated import simulator_prices

#: Seconds of the provider's batches; executing their lines takes more.
PROVIDER = {"validating": 0.25, "in_progress": 0.5, "finalizing": 0.25}
#: Where Celery keeps results, and results that are read at once.
RESULT, RESULTS_READ = "celery-task-meta-", 500
#: Seconds between two measurements of memory.
POLL_SECONDS = 0.1


class Watch(threading.Thread):
    """Records the peak of resident memory and the CPU time of processes, by their names."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._watched: dict[str, psutil.Process] = {}
        self._ended = threading.Event()
        #: In bytes.
        self.max_bytes: dict[str, int] = {}

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of each process that runs, since its start."""
        seconds: dict[str, float] = {}
        for name, watched in list(self._watched.items()):
            with suppress(psutil.NoSuchProcess):
                times = watched.cpu_times()
                seconds[name] = times.user + times.system
        return seconds

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def watch(self, name: str, pid: int) -> None:
        self.max_bytes[name] = 0
        self._watched[name] = psutil.Process(pid)

    def new_peaks(self) -> dict[str, int]:
        """Return the peaks so far, and start again at zero."""
        peaks, self.max_bytes = self.max_bytes, dict.fromkeys(self._watched, 0)
        return peaks

    def run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            for name, watched in list(self._watched.items()):
                try:
                    self.max_bytes[name] = max(self.max_bytes[name], watched.memory_info().rss)
                except psutil.NoSuchProcess:
                    del self._watched[name]


@dataclass(frozen=True)
class Size:
    """How much a run does, and with how many processes."""

    #: Requests in total.
    count: int
    #: Requests of a batch, which is created once so many are parked. Without it, one batch has all.
    job_requests: int | None = None
    #: Processes of the batch lane, and processes that enqueue a share of the requests each.
    workers: int = 1
    producers: int = 1


class Lane:
    """A Valkey server, a simulated provider and the processes of the fleet."""

    def __init__(self, folder: Path, watch: Watch, size: Size) -> None:
        self._folder, self._watch, self._count = folder, watch, size.count
        #: The names of the batch workers.
        self.workers = [f"worker-{number}" for number in range(1, size.workers + 1)]
        self._job_requests = size.job_requests or size.count
        self.batches = -(-size.count // self._job_requests)
        self._producers = [f"producer-{number}" for number in range(1, size.producers + 1)]
        self._env: dict[str, str] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Start Valkey and the provider, and publish a catalogue as a worker would."""
        config, file = self._config()
        with (
            redis_server(self._folder / "valkey") as valkey,
            self.started(
                "simulator", "workers.onebox.simulator", "--profile", str(self._profile(config))
            ),
        ):
            self.base = wait_for("listening on", self.log("simulator")).split()[-1]
            self.url = valkey.url
            self.redis: Any = redis.Redis.from_url(self.url, decode_responses=True)
            self._watch.watch("Valkey", self.redis.info("server")["process_id"])
            config.catalogue().publish(self.redis)
            self._env = {
                "FLEET_REDIS_URL": self.url,
                "FLEET_CONFIG": str(file),
                "FLEET_DATA_DIR": str(self._folder / "data"),
                "OPENAI_API_KEY": "simulated",
                "OPENAI_BASE_URL": self.base,
            }
            yield

    @contextmanager
    def started(self, name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process during the block, and watch it."""
        with process([*command], self.log(name), **self._env) as child:
            self._watch.watch(name, child.pid)
            yield child

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the batch workers during the block."""
        with ExitStack() as processes:
            for name in self.workers:
                command = ["celery", "-A", "scheduler.app", "worker", "-n", f"{name}@%h"]
                processes.enter_context(self.started(name, *command))
            yield

    def beating(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Run beat during the block: batches are created and polled."""
        return self.started("beat", "celery", "-A", "scheduler.beat", "beat")

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of each running process."""
        return self._watch.cpu_seconds()

    def produce(self) -> tuple[float, float]:
        """Enqueue all requests.

        Returns:
            The seconds until the last producer has ended its share, and the CPU seconds of all.

        Raises:
            RuntimeError: A producer has failed.
        """
        with self.producing() as children:
            failed = [child.wait() for child in children]
        texts = [self.log(name).read_text() for name in self._producers]
        if any(failed):
            raise RuntimeError("".join(texts))
        seconds, cpu_seconds = zip(*(map(float, text.split()) for text in texts), strict=True)
        return max(seconds), sum(cpu_seconds)

    @contextmanager
    def producing(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Enqueue all requests during the block."""
        share = str(self._count // len(self._producers))
        with ExitStack() as processes:
            yield [
                processes.enter_context(
                    self.started(
                        name, "tests.bench.batch_producer", self.url, share, str(self._ids_of(name))
                    )
                )
                for name in self._producers
            ]

    def _ids_of(self, producer: str) -> Path:
        return self._folder / f"{producer}.ids"

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield the results of the enqueued tasks that succeeded."""
        for ids in in_parts(self.ids(), RESULTS_READ):
            for text in self.redis.mget([RESULT + task_id for task_id in ids]):
                stored = json.loads(text or "{}")
                if stored.get("status") == "SUCCESS":
                    yield stored["result"]

    def ids(self) -> list[str]:
        """Return the ids of the enqueued tasks."""
        texts = (self._ids_of(name).read_text() for name in self._producers)
        return [task_id for text in texts for task_id in text.split()]

    def file_bytes(self) -> int:
        """Return the bytes of the input files that are being uploaded."""
        return sum(file.stat().st_size for file in (self._folder / "data" / "batches").iterdir())

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def provider(self, what: str) -> Any:
        """Return the simulator's "invoice" or "stats"."""
        return self._get(f"{self.base.removesuffix('/v1')}/simulator/{what}")

    def batches_ended(self) -> bool:
        """Return whether the provider has executed all batches."""
        batches = self._get(f"{self.base}/batches?limit=100")["data"]
        return all(batch["status"] == "completed" for batch in batches)

    def _get(self, url: str) -> Any:
        request = urllib.request.Request(url, headers={"Authorization": "Bearer simulated"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def _config(self) -> tuple[Any, Path]:
        full = dict.fromkeys(("max_requests", "max_inputs"), self._job_requests)
        policy = {**SIMULATED_BATCH, **full, "max_wait": 86_400.0}
        config = load(settings().config)
        config = config.model_copy(update={"batch": config.batch.model_copy(update=policy)})
        path = self._folder / "fleet.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return config, path

    def _profile(self, config: Any) -> Path:
        """Write a profile with the fleet's models and prices."""
        models = {
            deployment.upstream: {
                "kind": deployment.kind,
                **simulator_prices(config.rates(deployment)),
            }
            for deployment in config.deployments
        }
        path = self._folder / "profile.json"
        path.write_text(json.dumps({"models": models, "batch": PROVIDER}))
        return path
