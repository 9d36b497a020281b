"""The batch lane under load, stage by stage: `python -m tests.bench.batch --requests 50000`.

Real processes: a Valkey server, the provider simulator, batch workers, beat, and a producer. The
stages run one after the other, so that each is measured alone: all requests are enqueued before a
worker starts, batches are created once the last request is parked, and polled once the provider has
executed them. The provider's own time
is not counted. Each stage has a bound: pipelined writes of the same number of values of the stage's
size to the same Valkey server, after the fleet has stopped. Beside it are the CPU times of the
processes for each request: they do not depend on what else the machine does.

Afterwards every request must have one result, from one batch, the receipts must add up to what the
provider charged and to what the lane paid, and no process of the fleet may have used more than 400
MB of memory.

The `autobatcher` package then sends the same requests to the same simulator, in batches of 1000,
its default, if `make bench-batch` has installed it. It has no queue and no store: requests and
answers are in the memory of one process. Its result is the time from the first call to the last
answer, with the provider's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from config.settings import ROOT
from primarch_fleet import Completion
from scheduler.model.jsonl import request_id
from tests.bench.batch_lane import RESULT, Lane, Size, Watch
from tests.bench.batch_producer import MODEL, prompt

#: Resident bytes that no process of the fleet may exceed, and the processes that are not its own.
MAX_FLEET_BYTES, OTHER_PROCESSES = 400_000_000, ("Valkey", "simulator", "autobatcher")
#: Commands per pipeline, as a producer sends them; values that give a stage's mean size.
PIPELINE, SAMPLE = 500, 100
#: Measurements of a bound.
TRIALS = 3
#: Seconds between two checks of a stage, and seconds without progress after which a run fails.
POLL_SECONDS, STALLED_SECONDS = 0.01, 120.0
#: Where Celery keeps its messages of normal priority.
QUEUE = "batch\x06\x163"
#: Where the lane keeps parked requests and jobs.
REQUESTS, JOBS, JOB = "fleet:batch:requests", "fleet:batch:jobs", "fleet:batch:job:"
STATES = ("PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING", "DONE")
AUTOBATCHER = ROOT / ".venv-autobatcher" / "bin" / "python"


class Stage(NamedTuple):
    """Seconds of a stage for all requests, and the bytes that it wrote for each."""

    name: str
    seconds: float
    bytes: int
    #: Seconds of CPU by process.
    cpu_seconds: dict[str, float]


class Run:
    """Runs all requests through all stages once."""

    def __init__(self, lane: Lane, count: int) -> None:
        self._lane, self._redis, self._count = lane, lane.redis, count
        self._cpu_seconds: dict[str, float] = {}
        #: The keys of all jobs that were created.
        self._jobs: set[str] = set()

    def stages(self) -> Iterator[Stage]:
        """Yield each stage when it is finished."""
        self._since_last()
        seconds, cpu_seconds = self._lane.produce()
        cpu = {"producers": cpu_seconds, **self._since_last()}
        yield Stage("submit", seconds, _mean(self._redis.lrange(QUEUE, 0, SAMPLE - 1)), cpu)
        with self._lane.working():
            started = self._when(lambda: self._parked() > 0)
            self._since_last()
            parked = self._when(lambda: self._parked() == self._count, self._parked)
            records = self._redis.hrandfield(REQUESTS, SAMPLE, withvalues=True)
            cpu = self._since_last()
            yield Stage("park", parked - started, _mean(records[1::2]), cpu)
            with self._lane.beating():
                yield from self._submission()
            self._when(self._lane.batches_ended)
            with self._lane.beating():
                yield self._completion()

    def _submission(self) -> Iterator[Stage]:
        created = self._when(self._are_created)
        first, cpu = min(map(float, self._fields("created_at"))), self._since_last()
        yield Stage("create jobs", created - first, len(request_id("")), cpu)
        written = self._when(partial(self._have_reached, "SUBMITTING"))
        size, cpu = self._lane.file_bytes() // self._count, self._since_last()
        yield Stage("write, upload", written - created, size, cpu)
        self._when(partial(self._have_reached, "SUBMITTED"))

    def _completion(self) -> Stage:
        started = self._when(lambda: self._parked() < self._count)
        self._since_last()
        done = self._when(partial(self._have_reached, "DONE"), self._parked)
        cpu = self._since_last()
        sample = [RESULT + task_id for task_id in self._lane.ids()[:SAMPLE]]
        return Stage("complete", done - started, _mean(self._redis.mget(sample)), cpu)

    def _since_last(self) -> dict[str, float]:
        """The seconds of CPU of each process since the last call."""
        before, self._cpu_seconds = self._cpu_seconds, self._lane.cpu_seconds()
        return {
            name: seconds - before.get(name, 0.0) for name, seconds in self._cpu_seconds.items()
        }

    def problems(self) -> list[str]:
        """Return what is wrong; nothing if every request was answered and paid once."""
        answers = Counter(answer.receipt.batch_id for answer in self._answers())
        invoice = self._lane.provider("invoice")
        receipts = sum(answer.receipt.cost_nanousd for answer in self._answers())
        facts = {
            "results": (answers.total(), self._count),
            "batches": (len(answers), self._lane.batches),
            "requests charged": (invoice["requests"], self._count),
            "receipts": (receipts, invoice["total_nanousd"]),
            "paid by the jobs": (
                sum(map(int, self._fields("cost_nanousd"))),
                invoice["total_nanousd"],
            ),
            "requests left": (self._parked(), 0),
        }
        return [
            f"{name}: {actual}, not {expected}"
            for name, (actual, expected) in facts.items()
            if actual != expected
        ]

    def _answers(self) -> Iterator[Completion]:
        return map(Completion.model_validate, self._lane.results())

    def _parked(self) -> int:
        return int(self._redis.hlen(REQUESTS))

    def _are_created(self) -> bool:
        self._jobs |= {JOB + intent for intent in self._redis.zrange(JOBS, 0, -1)}
        return sum(map(int, self._fields("requests"))) == self._count

    def _fields(self, name: str) -> list[str]:
        return [self._redis.hget(job, name) for job in self._jobs]

    def _have_reached(self, state: str) -> bool:
        return all(STATES.index(it) >= STATES.index(state) for it in self._fields("state"))

    def _when(self, happened: Callable[[], bool], progress: Callable[[], int] = lambda: 0) -> float:
        """Wait for an event and return its time. Raises TimeoutError without progress."""
        seen, deadline = progress(), time.monotonic() + STALLED_SECONDS
        while not happened():
            if progress() != seen:
                seen, deadline = progress(), time.monotonic() + STALLED_SECONDS
            if time.monotonic() > deadline:
                jobs = [self._redis.hgetall(job) for job in self._jobs]
                log = self._lane.log(self._lane.workers[0]).read_text()[-4000:]
                raise TimeoutError(f"{self._parked()} are parked, {jobs}: {log}")
            time.sleep(POLL_SECONDS)
        return time.time()


def _mean(values: list[str]) -> int:
    return round(statistics.mean(len(value.encode()) for value in values))


def bound(lane: Lane, count: int, size: int) -> float:
    """Return the values of a size that Valkey stores per second: the best of TRIALS."""
    return max(_written(lane, count, size) for _ in range(TRIALS))


def _written(lane: Lane, count: int, size: int) -> float:
    value, started = "x" * size, time.perf_counter()
    for start in range(0, count, PIPELINE):
        pipe = lane.redis.pipeline(transaction=False)
        for number in range(start, min(start + PIPELINE, count)):
            pipe.set(f"bound:{number}", value)
        pipe.execute()
    seconds = time.perf_counter() - started
    for start in range(0, count, PIPELINE):
        lane.redis.unlink(*(f"bound:{number}" for number in range(start, start + PIPELINE)))
    return count / seconds


def autobatcher(lane: Lane, count: int, watch: Watch) -> None:
    if not AUTOBATCHER.exists():
        print("autobatcher is not installed: make bench-batch")
        return
    done = subprocess.run(
        [str(AUTOBATCHER), "-m", "tests.bench.batch_autobatcher", lane.base, MODEL],
        cwd=ROOT,
        input="".join(f"{prompt(number)}\n" for number in range(count)),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"autobatcher failed: {done.stderr[-2000:]}")
        return
    measured = json.loads(done.stdout)
    watch.max_bytes["autobatcher"] = measured["bytes"]
    print(
        f"autobatcher, {count} calls to answers in one process: {measured['seconds']:.1f} s, "
        f"{count / measured['seconds']:.0f} requests/s with the provider's time"
    )


def report(stages: list[Stage], bounds: dict[int, float], count: int, whole: float) -> None:
    for stage in stages:
        rate, limit = count / stage.seconds, bounds[stage.bytes]
        print(
            f"{stage.name:>14}: {stage.seconds:7.2f} s {rate:8.0f} requests/s, bound {limit:7.0f} "
            f"({stage.bytes} bytes each), ratio {rate / limit:.3f}; {_cpu(stage, count)}"
        )
    seconds = sum(stage.seconds for stage in stages)
    print(f"    all stages: {seconds:7.2f} s {count / seconds:8.0f} requests/s")
    print(f"    whole run: {whole:8.2f} s {count / whole:8.0f} requests/s (provider, starts)")


def _cpu(stage: Stage, count: int) -> str:
    """The microseconds of CPU for each request, by process."""
    each = {name: seconds * 1e6 / count for name, seconds in stage.cpu_seconds.items()}
    return ", ".join(f"{name} {micros:.0f} µs" for name, micros in each.items() if micros >= 1)


def report_memory(max_bytes: dict[str, int]) -> bool:
    """Print the memory of each process; return whether the fleet stayed below the limit."""
    over = {
        name
        for name, size in max_bytes.items()
        if name not in OTHER_PROCESSES and size >= MAX_FLEET_BYTES
    }
    for name, size in max_bytes.items():
        whose = "fleet, too much" if name in over else "fleet"
        whose = "not the fleet" if name in OTHER_PROCESSES else whose
        print(f"{name:>14}: {size / 1e6:4.0f} MB peak ({whose})")
    return not over


def measure(folder: Path, options: argparse.Namespace) -> bool:
    """Run everything; return whether there was no problem."""
    count, batches = options.requests, options.batches
    with Watch() as watch:
        size = Size(count, -(-count // batches), options.workers, options.producers)
        lane = Lane(folder, watch, size)
        with lane.open():
            run, started = Run(lane, count), time.perf_counter()
            stages = list(run.stages())
            whole = time.perf_counter() - started
            problems = run.problems()
            bounds = {stage.bytes: bound(lane, count, stage.bytes) for stage in stages}
            print(
                f"{count} requests, producers: {options.producers}, batches: {batches}, "
                f"batch workers: {options.workers}, cores: {os.cpu_count()}"
            )
            report(stages, bounds, count, whole)
            autobatcher(lane, count, watch)
    for problem in problems:
        print(f"wrong: {problem}")
    return report_memory(watch.max_bytes) and not problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=50_000, help="at most 50000")
    parser.add_argument("--workers", type=int, default=1, help="processes of the batch lane")
    parser.add_argument("--batches", type=int, default=1, help="that the requests are put into")
    parser.add_argument("--producers", type=int, default=1, help="processes that enqueue a share")
    options = parser.parse_args()
    if options.requests % options.producers or options.requests % options.batches:
        parser.error("--requests must be a multiple of --producers and of --batches")
    with tempfile.TemporaryDirectory() as folder:
        done = measure(Path(folder), options)
        sys.exit(not done)


if __name__ == "__main__":
    main()
