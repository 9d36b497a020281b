"""A fleet of one worker a lane that a test kills and starts again, and what its requests cost."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
from celery import signature

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, Ticket
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.contract import Lane
from primarch_fleet.protocol import task_name
from tests.support.workers import StartWorker, Worker
from workers.onebox.simulator.server import Simulator
from workers.runtime.leases.leases import LEASES_KEY, RENEWALS_KEY

APPS = {
    "realtime": "workers.realtime.app",
    "local": "tests.support.apps.counting_engine_app",
    "batch": "scheduler.app",
}
MODELS = {"realtime": "gpt-4o-mini", "local": "smollm2-135m", "batch": "gpt-4o-mini"}
#: A queue that no worker serves: what is sent to it stays.
TOLD = "told"


class MortalFleet(ExitStack):
    """Workers of each lane, a simulated provider and a client. Starts none by itself."""

    def __init__(
        self, simulator: Simulator, url: str, start_worker: StartWorker, folder: Path, **env: str
    ) -> None:
        super().__init__()
        self.simulator, self._start_worker = simulator, start_worker
        self._engine_log = folder / "engine.log"
        self._engine_log.touch()
        self.redis = self.enter_context(redis.Redis.from_url(url, decode_responses=True))
        self.redis.flushall()
        self.fleet = self.enter_context(Fleet(url))
        config = folder / "fleet.yaml"
        shipped = (ROOT / "config" / "fleet.yaml").read_text()
        config.write_text(shipped.replace("max_wait: 300", "max_wait: 0"))
        self._env = {
            "FLEET_REDIS_URL": url,
            "FLEET_CONFIG": str(config),
            "FLEET_DATA_DIR": str(folder),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
            "FLEET_TEST_ENGINE_LOG": str(self._engine_log),
            **env,
        }
        self.workers: dict[str, tuple[ExitStack, Worker]] = {}

    def start(self, *lanes: str, wait: bool = True, concurrency: int = 10) -> None:
        """Start workers of these lanes, by default of all; return when they are ready."""
        for lane in lanes or APPS:
            stack = self.enter_context(ExitStack())
            options: dict[str, Any] = {"env": self._env, "concurrency": concurrency, "wait": False}
            worker = stack.enter_context(
                self._start_worker(f"mortal-{lane}", app=APPS[lane], **options)
            )
            self.workers[lane] = stack, worker
        for lane in lanes or APPS if wait else ():
            self.workers[lane][1].wait_until_ready(120)

    def stop(self, lane: str) -> None:
        """SIGTERM a lane's worker, and wait for its end."""
        self.workers[lane][1].signal(signal.SIGTERM)
        self.workers[lane][1].process.wait(30)
        self.kill(lane)

    def kill(self, *lanes: str) -> None:
        """SIGKILL the workers of these lanes, by default of all."""
        for lane in lanes or list(self.workers):
            stack, _ = self.workers.pop(lane)
            stack.close()

    def question(self, lane: Lane, tenant: str, max_tokens: int = 20) -> CompletionRequest:
        """A request that names its tenant in the prompt, so that its calls can be counted."""
        return CompletionRequest.parse(
            {
                "model": MODELS[lane],
                "messages": [{"role": "user", "content": f"{tenant} asks"}],
                "lane": lane,
                "tenant_id": tenant,
                "max_tokens": max_tokens,
            }
        )

    def send_by_celery(self, lane: Lane, tenant: str) -> Ticket:
        """Send a request as a plain producer does, with a link and an errback to TOLD."""
        result = self.fleet.app.send_task(
            task_name(lane, "complete"),
            [self.question(lane, tenant).to_wire()],
            queue={"local": f"local.{MODELS['local']}"}.get(lane, lane),
            link=signature(f"link.{tenant}", queue=TOLD),
            link_error=signature(f"errback.{tenant}", queue=TOLD),
        )
        return Ticket(str(result.id), lane, "", "")

    def told(self) -> list[str]:
        """The tasks that links and errbacks have sent, sorted."""
        lists = [key for key in self.redis.keys(f"{TOLD}*") if self.redis.type(key) == "list"]
        texts = [text for key in lists for text in self.redis.lrange(key, 0, -1)]
        return sorted(json.loads(text)["headers"]["task"] for text in texts)

    def calls(self, tenant: str) -> int:
        """How often the provider was sent the tenant's prompt, and the engine began it."""
        bodies = [json.dumps(request["body"]) for request in self.simulator.requests()]
        begun = self._engine_log.read_text().splitlines()
        return sum(f"{tenant} asks" in text for text in (*bodies, *begun))

    def reserved(self, tenant: str) -> int:
        """Reserved nano-dollars."""
        return self.fleet.budget(tenant).month.reserved_nanousd

    def spent(self, tenant: str) -> int:
        """Spent nano-dollars."""
        return self.fleet.budget(tenant).month.spent_nanousd

    def is_idle(self) -> bool:
        """Whether no message waits for a worker or is held by one."""
        queues = [*APPS, "scheduler", f"local.{MODELS['local']}"]
        waiting = [
            key
            for key in self.redis.keys("*")
            if self.redis.type(key) == "list" and key.partition("\x06")[0] in queues
        ]
        held = (LEASES_KEY, RENEWALS_KEY, LEASED_TASKS)
        return not waiting and not self.redis.exists(*held)
