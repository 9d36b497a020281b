"""A real fleet for malformed messages: a server, a simulated provider, a worker of each lane."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from config.settings import ROOT
from primarch_fleet.queues import priority_lists
from tests.support.redis_server import RedisServer
from tests.support.workers import Worker
from workers.onebox.simulator import Profile, Simulator
from workers.onebox.simulator.profile import Model

#: A model of the provider, on the realtime and the batch lane, and the model of the engine.
HOSTED, OWN = "gpt-4o-mini", "own"
APPS = {"realtime": "workers.realtime.app", "local": "workers.local.app", "batch": "scheduler.app"}
QUEUES = ("realtime", f"local.{OWN}", "batch", "scheduler")
START_SECONDS = 120.0


def _config() -> dict[str, Any]:
    price = {"input": "0.15", "output": "0.60"}
    account = {"api_key": "os.environ/FUZZ_KEY", "api_base": "os.environ/FUZZ_PROVIDER"}
    hosted = {"id": "hosted", "model": HOSTED, "provider": "openai", "upstream": HOSTED}
    return {
        "providers": {"openai": {"litellm_provider": "openai", **account}},
        "deployments": [{**hosted, "price": price, "batch": True}],
        "engines": [{"model": OWN, "engine": "simulated", "price": price}],
        "batch": {"max_wait": 80_000},  # requests stay parked
        "tenants": {"default": {"monthly_budget": "1000000"}},
        "routing": {"num_retries": 0, "disable_cooldowns": True},
    }


class FuzzFleet:
    """The workers, by lane. A worker that ends is started again."""

    def __init__(self, folder: Path, server: RedisServer, provider: str) -> None:
        self.server = server
        self.redis = server.client()
        self._folder = folder
        (folder / "fleet.yaml").write_text(yaml.safe_dump(_config()))
        self._env = {
            **os.environ,
            "FLEET_REDIS_URL": server.url,
            "FLEET_CONFIG": str(folder / "fleet.yaml"),
            "FLEET_DATA_DIR": str(folder),
            "FLEET_VISIBILITY_TIMEOUT": "5",
            "FLEET_ENGINE": OWN,
            "FUZZ_PROVIDER": provider,
            "FUZZ_KEY": "sk-fuzz",
        }
        self.workers = {lane: self._start(lane) for lane in APPS}
        self.exits = 0

    def _start(self, lane: str) -> Worker:
        command = [sys.executable, "-m", "celery", "--quiet", "-A", APPS[lane], "worker"]
        command += ["-n", f"{lane}@fuzz", "-l", "CRITICAL"]
        log = self._folder / f"{lane}.log"
        if log.exists():
            log.rename(self._folder / f"{lane}.{log.stat().st_mtime_ns}.log")
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=self._env)
        return Worker(f"{lane}@fuzz", self.server.url, log, process)

    def wait_until_ready(self) -> None:
        """Return when each worker answers a ping."""
        for worker in self.workers.values():
            worker.wait_until_ready(START_SECONDS)

    def ended(self) -> Iterator[str]:
        """Count, start again and describe the workers that have ended."""
        for lane, worker in self.workers.items():
            if worker.process.poll() is not None:
                self.exits += 1
                log = worker.log.read_text()[-3000:]
                yield f"{lane} exited with {worker.process.returncode}: {log}"
                self.workers[lane] = self._start(lane)
                self.workers[lane].wait_until_ready(START_SECONDS)

    def waiting(self) -> int:
        """Messages that wait in a queue or are leased."""
        pipeline = self.redis.pipeline(transaction=False)
        keys = [key for queue in QUEUES for key in priority_lists(queue)]
        for key in keys:
            pipeline.exists(key, f"{key}\x06\x16turns")
        pipeline.hlen("fleet:leases")
        return sum(pipeline.execute())


@contextmanager
def fuzz_fleet(folder: Path) -> Iterator[FuzzFleet]:
    """A fleet whose workers have not yet answered: see `wait_until_ready`."""
    server = RedisServer(folder / "redis", {"save": "", "maxmemory-policy": "noeviction"})
    server.start()
    profile = Profile(models={HOSTED: Model(input="0.15", output="0.60")})
    with Simulator(profile) as simulator:
        fleet = FuzzFleet(folder, server, simulator.url)
        try:
            yield fleet
        finally:
            for worker in fleet.workers.values():
                worker.end()
            fleet.redis.close()
            server.kill()
