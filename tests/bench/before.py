"""Direct calls against the fleet, beside the published claim: `python -m tests.bench.before`.

Before: `--callers` callers in one process call one simulated provider through the OpenAI SDK with
its defaults, each one request after the other. After: the same number of callers use the fleet. The
requests and the provider are the same. The fleet also has a second provider of the same kind, whose
outages come at other times, the batch lane for requests without a waiting caller, and an engine.

A provider answers after 2.5 s on average, and has OUTAGES in which it refuses every call with a
Retry-After. MIX sends a third of the requests to each lane. The claim names no mix, only 42 % of
the cost saved, by batches that save 50 % and an engine that saves 80 %: thirds save 43 %.

Time runs `--scale` times faster; all results are converted to real time. The fleet's own time is
thus multiplied by the scale. A Retry-After is whole seconds in HTTP: at a scale that makes it
shorter than a second, the fleet waits for the full second, and the SDK does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from openai import AsyncOpenAI, OpenAIError

from config.fleet import load
from config.settings import settings
from primarch_fleet import AsyncFleet, Completion, CompletionRequest, FleetError
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server
from workers.onebox.simulated import BATCH as SIMULATED_BATCH

MODEL, HOSTED = "gpt-4o-mini", "smollm2-135m"
#: The lane of each request in turn.
MIX = ("realtime", "batch", "local")
#: Dollars per million tokens: the model's list price, and the engine's, which is 80 % lower.
PRICE, ENGINE_PRICE = {"input": "0.15", "output": "0.60"}, {"input": "0.03", "output": "0.12"}
#: Seconds of an answer, the most by which it differs, and the seconds of a batch's stages.
LATENCY = {"mean": 2.5, "jitter": 1.0}
BATCH = {"validating": 10.0, "in_progress": 100.0, "finalizing": 10.0}
TIMEOUT_SECONDS = 300.0


class Outage(NamedTuple):
    """A provider refuses for `lasts` seconds, first at `first`, then every `every` seconds."""

    status: int
    retry_after: float
    first: float
    every: float
    lasts: float


OUTAGES = (
    Outage(429, retry_after=2, first=30, every=60, lasts=4),
    Outage(503, retry_after=2, first=110, every=300, lasts=6),
)
#: Seconds by which the second provider's outages come later.
SHIFT_SECONDS = 30.0


class OutageThread(threading.Thread):
    """Makes a simulated provider refuse during its outages, until the block ends."""

    def __init__(self, base: str, profile: dict[str, Any], scale: float, shift: float) -> None:
        super().__init__(daemon=True)
        self._url = f"{base.removesuffix('/v1')}/simulator/profile"
        self._profile, self._scale, self._shift = profile, scale, shift
        self._ended = threading.Event()

    def __enter__(self) -> OutageThread:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        started, shown = time.monotonic(), None
        while not self._ended.wait(0.01):
            now = (time.monotonic() - started) * self._scale - self._shift
            outage = next((outage for outage in OUTAGES if _is_active(outage, now)), None)
            if outage is not shown:
                self._show(outage)
                shown = outage
        self._show(None)

    def _show(self, outage: Outage | None) -> None:
        faults = []
        if outage:
            retry_after = outage.retry_after / self._scale
            faults = [{"status": outage.status, "retry_after": retry_after}]
        body = json.dumps({**self._profile, "faults": faults}).encode()
        urllib.request.urlopen(urllib.request.Request(self._url, body, method="PUT")).close()


def _is_active(outage: Outage, now: float) -> bool:
    return now >= outage.first and (now - outage.first) % outage.every < outage.lasts


class Outcome(NamedTuple):
    """The outcome of one request."""

    #: Seconds that the caller waited; None without a waiting caller.
    waited: float | None
    #: Micro-dollars.
    cost: int = 0
    #: The name of the error; "" for an answer.
    error: str = ""


class Figures(NamedTuple):
    """The results of all requests, in real time."""

    #: Requests per minute.
    throughput: float
    mean: float
    p99: float
    #: Micro-dollars per answered request.
    cost: float
    #: Percent of requests that were answered.
    availability: float

    @classmethod
    def of(cls, outcomes: list[Outcome], seconds: float, scale: float) -> Figures:
        waited = sorted(
            outcome.waited * scale for outcome in outcomes if outcome.waited is not None
        )
        answered = sum(not outcome.error for outcome in outcomes)
        return cls(
            throughput=answered / (seconds * scale) * 60,
            mean=statistics.mean(waited),
            p99=waited[math.ceil(0.99 * len(waited)) - 1],
            cost=sum(outcome.cost for outcome in outcomes) / answered,
            availability=100 * answered / len(outcomes),
        )


#: The claimed results before and after; cost in micro-dollars.
CLAIMED = Figures(45, 2.5, 8.2, 120_000, 99.2), Figures(125, 1.8, 4.1, 70_000, 99.8)
CLAIMS = ("+178 %", "-28 %", "-50 %", "-42 %", "99.8 %")


def messages(number: int) -> list[Any]:
    """Return the messages of a request, the same for both sides."""
    text = f"Item {number}. " + "What follows from that, in one sentence? " * 3
    return [{"role": "user", "content": text}]


async def shared(callers: int, numbers: list[int], ask: Callable[[int], Awaitable[Outcome]]) -> Any:
    """Return the outcomes of all requests; each caller sends one after the other."""
    remaining, outcomes = iter(numbers), []

    async def caller() -> None:
        for number in remaining:
            outcomes.append(await ask(number))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return outcomes


async def direct(base: str, count: int, callers: int) -> tuple[list[Outcome], float]:
    """Send every request by the SDK, with its retries; return outcomes and total seconds."""
    async with AsyncOpenAI(api_key="simulated", base_url=base) as client:

        async def ask(number: int) -> Outcome:
            began = time.perf_counter()
            try:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=messages(number)
                )
            except OpenAIError as error:
                return Outcome(time.perf_counter() - began, error=type(error).__name__)
            assert answer.usage is not None
            paid = answer.usage.prompt_tokens * 15 + answer.usage.completion_tokens * 60
            return Outcome(time.perf_counter() - began, round(paid / 100))

        started = time.perf_counter()
        outcomes = await shared(callers, list(range(count)), ask)
        return outcomes, time.perf_counter() - started


def request(number: int) -> CompletionRequest:
    lane = MIX[number % len(MIX)]
    model = HOSTED if lane == "local" else MODEL
    return CompletionRequest.parse({"model": model, "messages": messages(number), "lane": lane})


async def through_the_fleet(url: str, count: int, callers: int) -> tuple[list[Outcome], float]:
    """Submit the batch requests first; the same number of callers send the others."""
    requests = [request(number) for number in range(count)]
    batch_requests = [request for request in requests if request.lane == "batch"]
    async with AsyncFleet(url) as fleet:

        async def send(number: int) -> Outcome:
            began = time.perf_counter()
            ticket = await fleet.submit(requests[number])
            answered = await answer(fleet.result(ticket, TIMEOUT_SECONDS))
            return answered._replace(waited=time.perf_counter() - began)

        started = time.perf_counter()
        tickets = await fleet.submit_many(batch_requests)
        numbers = [n for n, request in enumerate(requests) if request.lane != "batch"]
        interactive = asyncio.create_task(shared(callers, numbers, send))
        batch = await asyncio.gather(
            *(answer(fleet.result(ticket, TIMEOUT_SECONDS)) for ticket in tickets)
        )
        return [*await interactive, *batch], time.perf_counter() - started


async def answer(result: Awaitable[Completion]) -> Outcome:
    try:
        return Outcome(None, (await result).receipt.cost)
    except FleetError as error:
        return Outcome(None, error=type(error).__name__)


class Providers(NamedTuple):
    """Two simulated providers: their addresses, and how they answer."""

    bases: tuple[str, str]
    profile: dict[str, Any]

    @contextmanager
    def outages(self, scale: float) -> Iterator[None]:
        """Run the outages of both, counted from now."""
        with (
            OutageThread(self.bases[0], self.profile, scale, 0.0),
            OutageThread(self.bases[1], self.profile, scale, SHIFT_SECONDS),
        ):
            yield


@contextmanager
def providers(folder: Path, scale: float) -> Iterator[Providers]:
    profile = {
        "models": {MODEL: PRICE},
        "latency": {name: seconds / scale for name, seconds in LATENCY.items()},
        "batch": {name: seconds / scale for name, seconds in BATCH.items()},
    }
    path = folder / "profile.json"
    path.write_text(json.dumps(profile))
    with ExitStack() as stack:
        bases = []
        for name in ("first", "second"):
            log = folder / f"{name}.log"
            stack.enter_context(process(["workers.onebox.simulator", "--profile", str(path)], log))
            bases.append(wait_for("listening on", log).split()[-1])
        yield Providers((bases[0], bases[1]), profile)


def configuration(folder: Path, scale: float) -> Path:
    """Write the shipped configuration with the second provider; its waits are scaled too."""
    config = load(settings().config).model_dump(mode="json")
    first = config["providers"]["openai"]
    first["webhook_secret"] = None
    config["providers"]["second"] = {**first, "api_base": "os.environ/SECOND_BASE_URL"}
    [mini] = [item for item in config["deployments"] if item["model"] == MODEL]
    config["deployments"] = [mini, {**mini, "id": "second", "provider": "second", "batch": False}]
    waits = {name: config["routing"][name] / scale for name in ("cooldown_time", "max_wait")}
    config["routing"] |= {**waits, "fallbacks": {}}
    config["engines"][0] |= {"price": ENGINE_PRICE, "list_price": PRICE}
    config["batch"] |= SIMULATED_BATCH
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def fleet(folder: Path, bases: tuple[str, str], scale: float) -> Iterator[str]:
    """Run one worker of each lane, and beat; yields the address of Redis."""
    with ExitStack() as stack:
        valkey = stack.enter_context(redis_server(folder / "valkey"))
        url = valkey.url
        env = {
            "FLEET_REDIS_URL": url,
            "FLEET_CONFIG": str(configuration(folder, scale)),
            "FLEET_DATA_DIR": str(folder / "data"),
            "OPENAI_API_KEY": "simulated",
            "OPENAI_BASE_URL": bases[0],
            "SECOND_BASE_URL": bases[1],
        }
        apps = {"realtime": "workers.realtime.app", "local": "workers.local.app"}
        for lane, app in {**apps, "batch": "scheduler.app"}.items():
            log = folder / f"{lane}.log"
            command = ["celery", "-A", app, "worker", "-n", f"{lane}@bench"]
            stack.enter_context(process(command, log, **env))
            wait_for_worker(url, log, name=lane)
        beat = ["celery", "-A", "scheduler.beat", "beat"]
        stack.enter_context(process(beat, folder / "beat.log", **env))
        yield url


def measure(folder: Path, options: argparse.Namespace) -> tuple[Figures, Figures]:
    count, callers, scale = options.requests, options.callers, options.scale
    with providers(folder, scale) as both:
        with both.outages(scale):
            before = asyncio.run(direct(both.bases[0], count, callers))
        with fleet(folder, both.bases, scale) as url:
            asyncio.run(through_the_fleet(url, 2 * len(MIX), callers))  # warm
            with both.outages(scale):
                after = asyncio.run(through_the_fleet(url, count, callers))
    for name, (outcomes, _) in (("before", before), ("after", after)):
        failures = Counter(outcome.error for outcome in outcomes if outcome.error)
        print(f"not answered {name}: {dict(failures) or 'none'}")
    return Figures.of(*before, scale), Figures.of(*after, scale)


def report(before: Figures, after: Figures) -> None:
    titles = ("requests per minute", "mean, s", "p99, s", "cost, micro-dollars", "answered, %")
    print(f"{'':22}{'before':>10}{'after':>10}{'change':>10}   claimed")
    rows = zip(titles, before, after, *CLAIMED, CLAIMS, strict=True)
    for title, was, now, claimed_before, claimed_after, claim in rows:
        change = f"{100 * (now / was - 1):+.0f} %"
        claimed = f"{claimed_before:g} -> {claimed_after:g}: {claim}"
        print(f"{title:22}{was:>10.2f}{now:>10.2f}{change:>10}   {claimed}")


EXPLANATION = """
Where the differences come from: the engine, which is simulated here, answers a third of the
requests in milliseconds. Another third has no waiting caller: it costs half, is not part of the
latency, and its batch takes two minutes here, where a real batch takes up to a day. So the mix
makes most of the throughput, the mean and the cost; another mix gives other results. The second
provider makes the p99 and the answered share: a call that one provider refuses goes to the
other at once. The SDK waits for the Retry-After and retries, but only twice; the fleet waits
only when both refuse, for up to a minute (`max_wait`). No request on the realtime lane is
answered faster than a direct call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--callers", type=int, default=8, help="concurrent callers")
    parser.add_argument("--scale", type=float, default=2.0, help="speed of time; 1 is real time")
    options = parser.parse_args()
    print(
        f"{options.requests} requests by {options.callers} callers, {os.cpu_count()} cores; "
        f"{options.scale:g} times faster than real time, results in real time"
    )
    with tempfile.TemporaryDirectory() as folder:
        report(*measure(Path(folder), options))
    print(EXPLANATION)


if __name__ == "__main__":
    main()
