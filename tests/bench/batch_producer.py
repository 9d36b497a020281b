"""Enqueues requests on the batch lane as a service does: `python -m tests.bench.batch_producer`.

Writes the ids into a file, one per line, and prints the seconds of the submit, and
those of CPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from primarch_fleet import CompletionRequest, Fleet

MODEL = "gpt-4o-mini"
#: About the length of a short paragraph.
PADDING = "What follows from that, in one sentence? " * 10

#: Requests of one call of `submit_many`.
PART = 50_000


def prompt(number: int) -> str:
    """Return a prompt, the same for all contenders."""
    return f"Item {number}. {PADDING}"


def requests(first: int, end: int) -> Iterator[CompletionRequest]:
    for number in range(first, end):
        messages = [{"role": "user", "content": prompt(number)}]
        yield CompletionRequest(model=MODEL, messages=messages, lane="batch")


def main() -> None:
    url, count, ids = sys.argv[1:]
    with Fleet(url) as fleet:
        fleet.catalogue()
        started, cpu_started = time.perf_counter(), time.process_time()
        with Path(ids).open("w") as file:
            for first in range(0, int(count), PART):
                tickets = fleet.submit_many(requests(first, min(first + PART, int(count))))
                file.writelines(f"{ticket.id}\n" for ticket in tickets)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(seconds, cpu_seconds)


if __name__ == "__main__":
    main()
