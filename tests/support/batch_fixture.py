"""The batch lane in one process: real Valkey, Celery tracer and SDK, and a simulated provider."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery
from celery.app.trace import trace_task
from celery.result import AsyncResult
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from config.fleet import FleetConfig
from config.settings import settings
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, protocol
from primarch_fleet.contract import Receipt
from primarch_fleet.redis_support import patient_async
from primarch_fleet.requests import Request
from scheduler.intake.parking import ParkingStore
from scheduler.jobs.context import BatchContext, Observers
from scheduler.jobs.pipeline import BatchPipeline
from scheduler.providers.base import ProviderBatch
from scheduler.providers.openai import OpenAIBatches
from scheduler.providers.request_lines import LineEncoder
from scheduler.store.blobs import BlobStore
from scheduler.store.keys import PREFIX
from tasks import services
from tasks.privacy import Privacy
from tests.support.closed_backends import closed_backends
from tests.support.mortal_store import Killed, MortalStore, Witness
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.app import App
from workers.onebox.simulator.profile import BatchProfile, Fault, Model
from workers.onebox.simulator.provider import Provider
from workers.runtime.results import result_backend

#: Lifetime of results, in seconds.
RESULT_TTL = 3 * 86_400.0
PRICES = {
    "gpt-4o": ("2.50", "10.00"),
    "gpt-4o-mini": ("0.15", "0.60"),
    "gpt-5-pro": ("15.00", "120.00"),
    "vectors": ("0.02", "0"),
    "guard": ("0", "0"),
}
#: The kinds of the models that are not for chats.
KINDS: dict[str, Any] = {"gpt-5-pro": "responses", "vectors": "embedding", "guard": "moderation"}


def profile(*faults: Fault, **batch: Any) -> Profile:
    """The profile of a provider with the models of PRICES."""
    models = {
        name: Model(kind=KINDS.get(name, "chat"), input=paid, output=made)
        for name, (paid, made) in PRICES.items()
    }
    return Profile(models=models, faults=faults, batch=BatchProfile(**batch))


def config(kind: str = "openai", token_limit: int | None = None, **policy: Any) -> FleetConfig:
    """A fleet that offers the models of PRICES in batches and creates batches at once.

    Args:
        kind: LiteLLM's name of the provider.
        token_limit: The provider's limit of enqueued tokens for each model.
        policy: Fields of the section `batch`.
    """
    account = {"api_key": "os.environ/TEST_KEY", "api_base": "os.environ/TEST_BASE"}
    return FleetConfig.model_validate(
        {
            "providers": {"openai": {"litellm_provider": kind, **account}},
            "deployments": [
                {
                    "id": f"openai-{name}",
                    "model": name,
                    "provider": "openai",
                    "upstream": name,
                    "kind": KINDS.get(name, "chat"),
                    "price": {"input": paid, "output": made},
                    "free": name == "guard",
                    "batch": True,
                    "batch_enqueued_token_limit": token_limit,
                }
                for name, (paid, made) in PRICES.items()
            ],
            "batch": {"max_wait": 0, **policy},
        }
    )


def chat(text: str, model: str = "gpt-4o-mini", **more: Any) -> CompletionRequest:
    return CompletionRequest(model=model, messages=[{"role": "user", "content": text}], **more)


def embedding(*texts: str) -> EmbeddingRequest:
    return EmbeddingRequest(model="vectors", input=list(texts), dimensions=8)


class Dialect(NamedTuple):
    """The API of the simulated provider, and the account that calls it at a URL."""

    app: Callable[[Provider], App]
    account: Callable[[str], OpenAIBatches]
    #: LiteLLM's name of the provider.
    kind: str = "openai"


#: Of all tests: to read the certificates takes 20 ms.
_TLS = ssl.create_default_context()


def openai_account(url: str) -> OpenAIBatches:
    http = DefaultAsyncHttpxClient(verify=_TLS)
    return OpenAIBatches(AsyncOpenAI(api_key="test-key", base_url=url, http_client=http))


OPENAI = Dialect(App, openai_account)


class Scheduler:
    """The objects of one scheduler process."""

    def __init__(self, bench: Bench) -> None:
        client, limit = patient_async(bench.url), bench.config.batch.body_limit
        self.store = MortalStore(client, bench.now)
        self.bodies = BlobStore(
            client,
            self.store.now,
            bench.place,
            max_inline_bytes=limit,
            result_ttl_seconds=RESULT_TTL,
        )
        self.provider = bench.account(bench.simulator.url)
        self.receipts: list[Receipt] = []
        self.jobs: list[tuple[float, int, set[str]]] = []
        observers = Observers(
            self.receipts.append, lambda *seen: self.jobs.append((*seen[:2], set(seen[2])))
        )
        lines, policy = bench.lines, bench.config.batch
        self.lane = BatchPipeline(
            BatchContext.from_policy(self.store, self.bodies, lines, policy, bench.folder),
            bench.config,
            {"openai": self.provider},
            Witness(bench.app, bench.completed),
            observers,
        )

    async def close(self) -> None:
        await self.lane.close()


class Bench:
    """The lane, the provider and their clock. The store's clock is `skew` seconds ahead."""

    skew = 0.0

    def __init__(
        self,
        app: Celery,
        url: str,
        folder: Path,
        simulator: Simulator,
        config: FleetConfig,
        *,
        account: Callable[[str], OpenAIBatches] = OPENAI.account,
        place: str = "",
    ) -> None:
        assert isinstance(simulator.clock, VirtualClock)
        self.account, self.place = account, place
        self.app, self.url, self.folder = app, url, folder
        self.simulator, self.clock, self.config = simulator, simulator.clock, config
        self.lines = LineEncoder(config, Privacy(config.requests, b"key"))
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        #: Task ids of the completions by all schedulers, in order; repeated ones count again.
        self.completed: list[str] = []
        self.schedulers: list[Scheduler] = []
        self.scheduler = self.new_scheduler()
        self.deferral_store = ParkingStore(
            self.scheduler.store, self.scheduler.bodies, self.lines, config
        )

    def now(self) -> float:
        """The store's time, in Unix seconds."""
        return self.clock.now() + self.skew

    def new_scheduler(self) -> Scheduler:
        """Start another scheduler."""
        self.schedulers.append(Scheduler(self))
        return self.schedulers[-1]

    async def send(self, *requests: Request, **options: Any) -> list[AsyncResult[Any]]:
        """Enqueue requests and park them."""
        results = await asyncio.to_thread(self._send, requests, options)
        await self.work()
        return results

    def _send(self, requests: Any, options: dict[str, Any]) -> list[AsyncResult[Any]]:
        tasks = self.app.tasks
        return [
            tasks[protocol.task_name("batch", request.verb)].apply_async(
                (request.to_wire(),), **options
            )
            for request in requests
        ]

    async def work(self) -> int:
        """Run all messages of the batch and realtime queues as a worker does; their number."""
        return await asyncio.to_thread(self._work)

    def _work(self) -> int:
        self.app.set_current()
        done = 0
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            for name in ("batch", "realtime"):
                while (message := self.app.amqp.queues[name](channel).get()) is not None:
                    self.run(message)
                    message.ack()
                    done += 1
        return done

    def run(self, message: Any) -> None:
        """Run one message with Celery's tracer."""
        args, kwargs, embed = message.payload
        headers = message.headers
        request = {
            **headers,
            **(embed or {}),
            "delivery_info": message.delivery_info,
            "hostname": "batch1@test",
            "args": args,
            "kwargs": kwargs,
        }
        task = self.app.tasks[headers["task"]]
        trace_task(task, headers["id"], args, kwargs, request, app=self.app)

    async def turn(self, seconds: float = 20.0) -> None:
        """Advance the clock, then aggregate and poll once."""
        self.clock.advance(seconds)
        await self.scheduler.lane.aggregate()
        await self.scheduler.lane.poll()

    async def until_idle(self, seconds: float = 20.0, turns: int = 60) -> None:
        """Take turns until no request waits and no job is live."""
        for _ in range(turns):
            await self.turn(seconds)
            waits = sum(self.redis.zcard(key) for key in self.redis.keys(PREFIX + "waiting:*"))
            if not waits and not self.redis.zcard(PREFIX + "jobs"):
                return
        raise AssertionError(f"the lane is not idle after {turns} turns")

    async def die(self) -> None:
        """Take turns until the scheduler's store kills it; then start another one."""
        with pytest.raises(Killed):
            await self.until_idle()
        self.scheduler = self.new_scheduler()

    async def outcome(self, result: AsyncResult[Any]) -> Any:
        """What `get()` returns, or the exception that it raises."""
        return await asyncio.to_thread(result.get, timeout=5, propagate=False)

    async def completion(self, result: AsyncResult[Any]) -> Completion:
        return Completion.model_validate(await self.outcome(result))

    async def completions(self, results: list[AsyncResult[Any]]) -> list[Completion]:
        return [await self.completion(result) for result in results]

    async def settled(self, results: list[AsyncResult[Any]], batches: int) -> list[Any]:
        """The outcomes of tasks; asserts one completion each, and the number of paid batches."""
        assert sorted(self.completed) == sorted(str(result.id) for result in results)
        statuses = [batch.status for batch in await self.batches()]
        assert len([status for status in statuses if status != "failed"]) == batches
        outcomes = [await self.outcome(result) for result in results]
        return [
            Completion.model_validate(outcome) if isinstance(outcome, dict) else outcome
            for outcome in outcomes
        ]

    def calls(self, endpoint: str) -> dict[str, int]:
        """Calls of an endpoint of the provider, by HTTP status."""
        return dict(self.simulator.stats()["calls"].get(endpoint, {}))

    def answered(self) -> int:
        """The number of requests on the provider's invoice."""
        return int(self.simulator.invoice()["requests"])

    def states(self) -> list[str]:
        """The states of all jobs, ended jobs included."""
        keys = sorted(self.redis.keys(PREFIX + "job:*"))
        return [str(self.redis.hget(key, "state")) for key in keys]

    def batches_created(self) -> int:
        return int(self.simulator.stats()["batches_created"])

    async def batches(self) -> list[ProviderBatch]:
        """All batches at the provider."""
        return (await self.scheduler.provider.list(None)).batches


@asynccontextmanager
async def bench(
    app: Celery,
    url: str,
    folder: Path,
    offer: Profile,
    dialect: Dialect = OPENAI,
    *,
    place: str = "",
    **policy: Any,
) -> AsyncIterator[Bench]:
    """A bench on an empty Valkey.

    Args:
        app: The fleet's app.
        url: The Valkey; all its data is deleted.
        folder: For the files of jobs.
        offer: The provider's profile.
        dialect: The provider's API.
        place: Where large bodies are stored; empty for Redis.
        policy: Of `config`.
    """
    with (
        redis.Redis.from_url(url) as client,
        Simulator(offer, VirtualClock(time.time()), app=dialect.app) as simulator,
    ):
        client.flushall()
        with closed_backends(app):
            made = Bench(
                app,
                url,
                folder,
                simulator,
                config(dialect.kind, **policy),
                account=dialect.account,
                place=place,
            )
            try:
                with services.override(deferral_store=made.deferral_store):
                    yield made
            finally:
                for scheduler in made.schedulers:
                    await scheduler.close()
                made.redis.close()


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture(name="app", scope="module")
def fleet_app(valkey_url: str) -> Iterator[Celery]:
    """The fleet's app on the test's Valkey, with a worker's result backend."""
    before = os.environ.get("FLEET_REDIS_URL")
    os.environ["FLEET_REDIS_URL"] = valkey_url
    settings.cache_clear()
    from tasks import batch, realtime  # noqa: F401, PLC0415 - configured by the environment
    from tasks.app import app  # noqa: PLC0415

    app.conf.update(broker_url=valkey_url, result_backend=result_backend.backend_url(valkey_url))
    app.task(name="test.text")(_text)
    app.task(name="test.join")(_join)
    app.task(name="test.errback")(_errback)
    app.finalize()
    with app:
        yield app
    if before is None:
        del os.environ["FLEET_REDIS_URL"]
    else:
        os.environ["FLEET_REDIS_URL"] = before
    settings.cache_clear()


def _text(answer: dict[str, Any]) -> str:
    return Completion.model_validate(answer).text


def _join(parts: list[str]) -> list[str]:
    return parts


def _errback(task_id: str) -> str:
    return task_id


@pytest.fixture(name="opened")
def open_bench(app: Celery, valkey_url: str, tmp_path: Path) -> OpenBench:
    """`async with opened(profile(...), max_wait=300) as b:`"""

    def open_bench(offer: Profile | None = None, **policy: Any) -> Any:
        return bench(app, valkey_url, tmp_path / "batches", offer or profile(), **policy)

    return open_bench
