"""The fleet at work: sample requests through the three lanes, one table, everything stopped.

`python -m workers.onebox.demo` always uses the simulated provider: it costs nothing and needs no
key.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from config.settings import ROOT, settings
from primarch_fleet import AsyncFleet, Completion, CompletionRequest, EmbeddingRequest, FleetError
from primarch_fleet.contract import LANES, Request
from primarch_fleet.money import format_dollars
from primarch_fleet.outgoing import Ticket

SAMPLE = ROOT / "examples" / "requests.jsonl"
#: Seconds for the fleet to start, for all results, and for a clean stop.
START, RESULTS, STOP = 120.0, 120.0, 90.0

#: Columns of the table where no terminal says otherwise.
WIDTH = 110

Outcome = Completion | FleetError


def main() -> None:
    """Exit 0 when every request was answered, 1 when one was not, 2 when there was no fleet."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    requests = load(SAMPLE)
    folder = settings().data_dir / "run"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with fleet(folder) as url, Progress(console=console) as progress:
            tickets, outcomes = asyncio.run(drive(url, requests, progress))
    except FleetError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(2)
    console.print(table(tickets, outcomes))
    console.print(totals(outcomes))
    sys.exit(any(isinstance(outcome, FleetError) for outcome in outcomes))


def load(path: Path) -> list[Request]:
    """One request a line; the ones with an `input` are embeddings."""
    return [_request(json.loads(line)) for line in path.read_text().splitlines()]


def _request(data: dict[str, Any]) -> Request:
    return (EmbeddingRequest if "input" in data else CompletionRequest).parse(data)


@contextmanager
def fleet(folder: Path) -> Iterator[str]:
    """A fleet of one worker a lane on this machine, with its own data folder; yields its Redis.

    Its processes' output goes to `fleet.log` in the folder. Raises FleetError, with the end of
    that log, when it does not come up; always stops what it started.
    """
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "workers.onebox.up", "--simulate"]
    with (folder / "fleet.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=ROOT,
            env=_environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us, and we stop it
        )
        try:
            yield _wait(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP)


def _environment(folder: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key != "FLEET_REDIS_URL"}
    return own | {"FLEET_DATA_DIR": str(folder)}


def _wait(process: subprocess.Popen[bytes], folder: Path) -> str:
    addresses = folder / "addresses.yaml"
    deadline = time.monotonic() + START
    while not addresses.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            end = (folder / "fleet.log").read_text(errors="replace")[-2000:]
            raise FleetError(f"the fleet did not come up:\n{end}")
        time.sleep(0.1)
    return str(yaml.safe_load(addresses.read_text())["redis"])


async def drive(
    url: str, requests: list[Request], progress: Progress
) -> tuple[list[Ticket], list[Outcome]]:
    """Submit all, wait for all; a failure is an outcome like any other."""
    async with AsyncFleet(url) as fleet:
        tickets = await fleet.submit_many(requests)
        bar = progress.add_task("requests", total=len(tickets))

        async def outcome(ticket: Ticket) -> Outcome:
            try:
                return await fleet.result(ticket, timeout=RESULTS)
            except FleetError as error:
                return error
            finally:
                progress.advance(bar)

        return tickets, await asyncio.gather(*map(outcome, tickets))


def table(tickets: list[Ticket], outcomes: list[Outcome]) -> Table:
    """One row a request."""
    columns = ("lane", "why", "model served", "latency", "tokens", "cost", "saving")
    simulated = sum(isinstance(one, Completion) and one.receipt.simulated for one in outcomes)
    title = f"{len(tickets)} requests, {simulated} of them answered by a simulation"
    view = Table(*columns, title=title, box=SIMPLE_HEAD)
    for ticket, outcome in zip(tickets, outcomes, strict=True):
        view.add_row(*_row(ticket, outcome))
    return view


def _row(ticket: Ticket, outcome: Outcome) -> tuple[str, ...]:
    if isinstance(outcome, FleetError):
        return ticket.lane, ticket.reason, f"[red]{outcome.code}: {outcome}[/red]"
    receipt = outcome.receipt
    return (
        receipt.lane,
        receipt.reason,
        receipt.model,
        f"{receipt.latency:.2f} s",
        f"{receipt.input_tokens} + {receipt.output_tokens}",
        format_dollars(receipt.cost),
        format_dollars(receipt.saving),
    )


def totals(outcomes: list[Outcome]) -> Table:
    """One row a lane, and the sum."""
    view = Table("lane", "answered", "tokens", "cost", "list price", "saving", box=SIMPLE_HEAD)
    receipts = [one.receipt for one in outcomes if isinstance(one, Completion)]
    for lane in (*LANES, "all"):
        some = [receipt for receipt in receipts if lane in ("all", receipt.lane)]
        cost, listed = sum(one.cost for one in some), sum(one.list_cost for one in some)
        tokens = sum(one.input_tokens + one.output_tokens for one in some)
        view.add_row(
            lane,
            str(len(some)),
            str(tokens),
            format_dollars(cost),
            format_dollars(listed),
            format_dollars(listed - cost),
        )
    return view


if __name__ == "__main__":
    main()
