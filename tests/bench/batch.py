"""The batch lane under load, stage by stage: `python -m tests.bench.batch --requests 50000`.

Real processes: a Valkey, the provider's simulator, one batch worker, beat, and a producer. The
stages follow each other, so that each is measured alone: all requests are enqueued before the
worker starts, and one batch takes them all once the last is parked. What the provider takes for
itself is left out. Beside each stage stands its bound: pipelined writes of as many values of the
stage's size to the same Valkey, when the fleet has ended.

Afterwards every request must have one result, of one batch, the receipts must add up to what the
provider charged and the lane says it paid, and no process of the fleet may have taken more than
400 MB of memory.

The `autobatcher` package then asks the same of the same simulator, in batches of 1000 as it makes
them, where `make bench-batch` has installed it. It has no queue and no store: requests and answers
live in the memory of one process and end with it. Its figure is the whole way from the first call
to the last answer, the provider's time in it.
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
from tests.bench.batch_lane import Lane, Memory
from tests.bench.batch_producer import MODEL, prompt

#: Resident bytes that no process of the fleet may exceed, and the processes that are not its own.
MOST, OTHERS = 400_000_000, ("Valkey", "simulator", "autobatcher")
#: Commands of a pipeline, as a producer sends them; values whose mean is a stage's size.
PIPELINE, SAMPLE = 500, 100
#: Measurements of a bound.
TRIALS = 3
#: Seconds between two looks at a stage, and those without progress after which a run has failed.
LOOK, PATIENCE = 0.01, 120.0
#: Where Celery keeps its messages of normal priority, and results.
QUEUE, RESULT = "batch\x06\x163", "celery-task-meta-"
#: Where the lane keeps parked requests and jobs.
REQUESTS, JOBS, JOB = "fleet:batch:requests", "fleet:batch:jobs", "fleet:batch:job:"
STATES = ("PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING", "DONE")
AUTOBATCHER = ROOT / ".venv-autobatcher" / "bin" / "python"


class Stage(NamedTuple):
    """What a stage took for all requests, in seconds, and the bytes that it wrote for each."""

    name: str
    seconds: float
    bytes: int


class Run:
    """All requests through all stages, once."""

    def __init__(self, lane: Lane, count: int) -> None:
        self._lane, self._redis, self._count = lane, lane.redis, count

    def stages(self) -> Iterator[Stage]:
        """Each stage when it is over."""
        seconds = self._lane.produce()
        self._began = time.time()
        yield Stage("submit", seconds, _mean(self._redis.lrange(QUEUE, 0, SAMPLE - 1)))
        with self._lane.scheduler():
            started = self._when(lambda: self._parked() > 0)
            parked = self._when(lambda: self._parked() == self._count, self._parked)
            records = self._redis.hrandfield(REQUESTS, SAMPLE, withvalues=True)
            yield Stage("park", parked - started, _mean(records[1::2]))
            yield from self._job_stages()
        self._ended = time.time()

    def _job_stages(self) -> Iterator[Stage]:
        self._when(lambda: self._redis.zcard(JOBS) > 0)
        [intent] = self._redis.zrange(JOBS, 0, -1)
        self._job = JOB + intent
        cut = self._when(lambda: self._field("requests") == str(self._count))
        yield Stage("cut", cut - float(self._field("created_at")), len(request_id("")))
        written = self._when(partial(self._reached, "SUBMITTING"))
        yield Stage("write, upload", written - cut, self._lane.file_size() // self._count)
        drained = self._when(partial(self._reached, "DRAINING"))
        done = self._when(partial(self._reached, "DONE"), self._parked)
        sample = [RESULT + one for one in self._lane.ids()[:SAMPLE]]
        yield Stage("deliver", done - drained, _mean(self._redis.mget(sample)))

    def problems(self) -> list[str]:
        """What is wrong with the outcome; empty when every request was answered and paid once."""
        answers = Counter(answer.receipt.batch_id for answer in self._answers())
        invoice = self._lane.provider("invoice")
        receipts = sum(answer.receipt.cost for answer in self._answers())
        facts = {
            "results": (answers.total(), self._count),
            "batches": (len(answers), 1),
            "requests charged": (invoice["requests"], self._count),
            "receipts": (receipts, invoice["total"]),
            "paid by the job": (int(self._field("cost")), invoice["total"]),
            "requests left": (self._parked(), 0),
        }
        return [f"{name}: {one}, not {two}" for name, (one, two) in facts.items() if one != two]

    def _answers(self) -> Iterator[Completion]:
        ids = self._lane.ids()
        for start in range(0, len(ids), PIPELINE):
            for text in self._redis.mget([RESULT + one for one in ids[start : start + PIPELINE]]):
                result = json.loads(text or "{}")
                if result.get("status") == "SUCCESS":
                    yield Completion.model_validate(result["result"])

    def _parked(self) -> int:
        return int(self._redis.hlen(REQUESTS))

    def _field(self, name: str) -> str:
        return str(self._redis.hget(self._job, name))

    def _reached(self, state: str) -> bool:
        return STATES.index(self._field("state")) >= STATES.index(state)

    def _when(self, happened: Callable[[], bool], progress: Callable[[], int] = lambda: 0) -> float:
        """The moment when something has happened. Raises TimeoutError without progress."""
        seen, deadline = progress(), time.monotonic() + PATIENCE
        while not happened():
            if progress() != seen:
                seen, deadline = progress(), time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise TimeoutError(self._lane.log("worker").read_text()[-4000:])
            time.sleep(LOOK)
        return time.time()


def _mean(values: list[str]) -> int:
    return round(statistics.mean(len(value.encode()) for value in values))


def bound(lane: Lane, count: int, size: int) -> float:
    """Values of a size that Valkey takes a second in pipelines: the best of TRIALS."""
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


def autobatcher(lane: Lane, count: int, memory: Memory) -> None:
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
    said = json.loads(done.stdout)
    memory.most["autobatcher"] = said["bytes"]
    print(
        f"autobatcher, {count} calls to answers in one process: {said['seconds']:.1f} s, "
        f"{count / said['seconds']:.0f} requests/s with the provider's time"
    )


def report(stages: list[Stage], bounds: dict[int, float], count: int, whole: float) -> None:
    for stage in stages:
        rate, most = count / stage.seconds, bounds[stage.bytes]
        print(
            f"{stage.name:>14}: {stage.seconds:7.2f} s {rate:8.0f} requests/s, bound {most:7.0f} "
            f"({stage.bytes} bytes each), ratio {rate / most:.3f}"
        )
    seconds = sum(stage.seconds for stage in stages)
    print(f"    all stages: {seconds:7.2f} s {count / seconds:8.0f} requests/s")
    print(f" with all else: {whole:7.2f} s {count / whole:8.0f} requests/s (provider, starts)")


def report_memory(most: dict[str, int]) -> bool:
    """Say what each process took; whether the fleet's stayed below the limit."""
    over = {name for name, size in most.items() if name not in OTHERS and size >= MOST}
    for name, size in most.items():
        whose = "not the fleet's" if name in OTHERS else "over" if name in over else "ours"
        print(f"{name:>14}: {size / 1e6:4.0f} MB at most ({whose})")
    return not over


def measure(folder: Path, count: int) -> bool:
    """Whether all went as it must."""
    with Memory() as memory:
        lane = Lane(folder, count, memory)
        with lane.open():
            run, started = Run(lane, count), time.perf_counter()
            stages = list(run.stages())
            whole = time.perf_counter() - started
            problems = run.problems()
            bounds = {stage.bytes: bound(lane, count, stage.bytes) for stage in stages}
            print(f"{count} requests, one batch worker, {os.cpu_count()} cores")
            report(stages, bounds, count, whole)
            autobatcher(lane, count, memory)
    for problem in problems:
        print(f"wrong: {problem}")
    return report_memory(memory.most) and not problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=50_000, help="at most 50000")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not measure(Path(folder), options.requests))


if __name__ == "__main__":
    main()
