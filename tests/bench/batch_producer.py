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


def prompt(number: int) -> str:
    """Return a prompt, the same for all contenders."""
    return f"Item {number}. {PADDING}"


def requests(count: int) -> Iterator[CompletionRequest]:
    for number in range(count):
        messages = [{"role": "user", "content": prompt(number)}]
        yield CompletionRequest(model=MODEL, messages=messages, lane="batch")


def main() -> None:
    url, count, ids = sys.argv[1:]
    with Fleet(url) as fleet:
        fleet.catalogue()
        started, cpu_started = time.perf_counter(), time.process_time()
        tickets = fleet.submit_many(requests(int(count)))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    Path(ids).write_text("".join(f"{ticket.id}\n" for ticket in tickets))
    print(seconds, cpu_seconds)


if __name__ == "__main__":
    main()
