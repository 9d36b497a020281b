"""Many batches, one after the other: `python -m tests.bench.batch_volume --requests 1000000`.

Real processes: a Valkey server, the provider simulator, one batch worker, beat, and a producer that
submits while the lane works. A batch has 50,000 requests, the most that OpenAI takes.

The memory of each process is printed for each quarter of the run: it must not grow with what was
done before. Valkey and the simulator keep every answer, so theirs grows. Afterwards every request
must have one result, and the provider must have charged each once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.bench.batch import OTHER_PROCESSES, QUEUE, REQUESTS
from tests.bench.batch_lane import Lane, Size, Watch

#: Requests of a batch.
JOB_REQUESTS = 50_000
#: Parts of the run whose memory is compared, and how much more than in the second the fleet's
#: processes may use in the last. The first has what each process loads only once.
QUARTERS, MAX_GROWTH = 4, 1.1
POLL_SECONDS, STALLED_SECONDS = 1.0, 300.0


class Volume:
    """Sends requests through a lane until each has a result."""

    def __init__(self, lane: Lane, watch: Watch, count: int) -> None:
        self._lane, self._watch, self._count = lane, watch, count
        #: The greatest resident bytes of each process, by quarter.
        self.quarters: list[dict[str, int]] = []

    def run(self) -> float:
        """Return the seconds from the first submit to the last result. Raises TimeoutError."""
        started = time.perf_counter()
        with ExitStack() as running:
            (producer,) = running.enter_context(self._lane.producing())
            running.enter_context(self._lane.working())
            running.enter_context(self._lane.beating())
            for quarter in range(1, QUARTERS + 1):
                self._wait(self._count * quarter // QUARTERS, producer)
                self.quarters.append(self._watch.new_peaks())
            return time.perf_counter() - started

    def _wait(self, charged: int, producer: subprocess.Popen[bytes]) -> None:
        """Wait until the provider has charged so many requests, and all of them are completed."""
        seen, deadline = self._left(), time.monotonic() + STALLED_SECONDS
        while self._charged() < charged or (charged == self._count and any(self._left())):
            if producer.poll():
                raise RuntimeError(self._lane.log("producer-1").read_text())
            if (left := self._left()) != seen:
                seen, deadline = left, time.monotonic() + STALLED_SECONDS
            if time.monotonic() > deadline:
                log = self._lane.log(self._lane.workers[0]).read_text()
                raise TimeoutError(f"{seen} are left: {log[-4000:]}")
            time.sleep(POLL_SECONDS)

    def _charged(self) -> int:
        return int(self._lane.provider("invoice")["requests"])

    def _left(self) -> tuple[int, int]:
        """Requests that wait for the worker, and requests that are parked or in a batch."""
        return self._lane.redis.llen(QUEUE), self._lane.redis.hlen(REQUESTS)

    def problems(self) -> list[str]:
        """Return what is wrong; nothing if each request was answered and charged once."""
        batches = Counter(result["receipt"]["batch_id"] for result in self._lane.results())
        facts = {
            "results": (batches.total(), self._count),
            "requests charged": (self._charged(), self._count),
            "batches": (len(batches), -(-self._count // JOB_REQUESTS)),
            "processes that grow": (self._growing(), []),
        }
        return [
            f"{name}: {found}, not {wanted}"
            for name, (found, wanted) in facts.items()
            if found != wanted
        ]

    def _growing(self) -> list[str]:
        second, last = self.quarters[1], self.quarters[-1]
        return [
            name
            for name, size in last.items()
            if name not in OTHER_PROCESSES and size > MAX_GROWTH * second.get(name, size)
        ]


def measure(folder: Path, count: int) -> bool:
    """Run everything; return whether there was no problem."""
    with Watch() as watch:
        lane = Lane(folder, watch, Size(count, JOB_REQUESTS))
        with lane.open():
            volume = Volume(lane, watch, count)
            seconds = volume.run()
            problems = volume.problems()
    print(
        f"{count} requests in batches of {JOB_REQUESTS}, one batch worker, {os.cpu_count()} cores: "
        f"{seconds:.0f} s, {count / seconds:.0f} requests/s with the provider's time"
    )
    print("peak MB by quarter of the run:")
    for name in volume.quarters[0]:
        sizes = [quarter.get(name, 0) / 1e6 for quarter in volume.quarters]
        print(f"{name:>14}: " + " ".join(f"{size:6.0f}" for size in sizes))
    for problem in problems:
        print(f"wrong: {problem}")
    return not problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not measure(Path(folder), options.requests))


if __name__ == "__main__":
    main()
