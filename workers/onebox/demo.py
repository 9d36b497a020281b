"""Runs sample requests through the three lanes, prints a table of them and stops everything.

`python -m workers.onebox.demo` always uses the simulated provider: it costs nothing and needs no
API key.
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
from primarch_fleet.contract import LANES
from primarch_fleet.money import format_dollars
from primarch_fleet.requests import Request
from primarch_fleet.ticket import Ticket
from workers.onebox.up import PRIVATE_UMASK

SAMPLE_REQUESTS = ROOT / "examples" / "requests.jsonl"
START_TIMEOUT_SECONDS = 120.0
RESULT_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 90.0
#: Columns of the output when it does not go to a terminal.
WIDTH = 110

Outcome = Completion | FleetError


def main() -> None:
    """Exit 0 if every request was answered, 1 if one was not, 2 if the fleet did not start."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    requests = load(SAMPLE_REQUESTS)
    os.umask(PRIVATE_UMASK)
    folder = settings().data_dir / "run"
    shutil.rmtree(folder, ignore_errors=True)
    console.print(
        f"Starting a fleet with a simulated provider; its log: {folder / 'fleet.log'}",
        soft_wrap=True,
        highlight=False,
    )
    try:
        with fleet(folder) as url, Progress(console=console) as progress:
            tickets, outcomes = asyncio.run(drive(url, requests, progress))
    except FleetError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(2)
    console.print(table(tickets, outcomes))
    console.print(totals(outcomes))
    console.print(
        "The fleet is stopped. `make up` starts a fleet that keeps running; its models and prices "
        "are in config/fleet.yaml.",
        soft_wrap=True,
        highlight=False,
    )
    sys.exit(any(isinstance(outcome, FleetError) for outcome in outcomes))


def load(path: Path) -> list[Request]:
    """Read one request per line; requests with an `input` are embeddings."""
    return [_request(json.loads(line)) for line in path.read_text().splitlines()]


def _request(data: dict[str, Any]) -> Request:
    return (EmbeddingRequest if "input" in data else CompletionRequest).parse(data)


@contextmanager
def fleet(folder: Path) -> Iterator[str]:
    """Run a fleet of one worker per lane on this machine; yields the URL of its Redis.

    The fleet's data and the output of its processes (`fleet.log`) are in `folder`. The fleet is
    always stopped at the end.

    Raises:
        FleetError: The fleet did not start; the message has the end of its log.
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
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the fleet
        )
        try:
            yield _wait_until_up(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_TIMEOUT_SECONDS)


def _environment(folder: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "FLEET_REDIS_URL"}
    return environment | {"FLEET_DATA_DIR": str(folder)}


def _wait_until_up(process: subprocess.Popen[bytes], folder: Path) -> str:
    addresses = folder / "addresses.yaml"
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not addresses.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = folder / "fleet.log"
            end = log.read_text(errors="replace")[-2000:]
            raise FleetError(f"the fleet did not start; the end of {log}:\n{end}")
        time.sleep(0.1)
    return str(yaml.safe_load(addresses.read_text())["redis"])


async def drive(
    url: str, requests: list[Request], progress: Progress
) -> tuple[list[Ticket], list[Outcome]]:
    """Submit all requests and wait for their outcomes; a failure is an outcome too."""
    async with AsyncFleet(url) as fleet:
        tickets = await fleet.submit_many(requests)
        bar = progress.add_task("requests", total=len(tickets))

        async def outcome(ticket: Ticket) -> Outcome:
            try:
                return await fleet.result(ticket, timeout=RESULT_TIMEOUT_SECONDS)
            except FleetError as error:
                return error
            finally:
                progress.advance(bar)

        return tickets, await asyncio.gather(*map(outcome, tickets))


def table(tickets: list[Ticket], outcomes: list[Outcome]) -> Table:
    """One row per request."""
    columns = ("lane", "reason", "model", "latency", "tokens in + out", "cost", "saving")
    receipts = [outcome.receipt for outcome in outcomes if isinstance(outcome, Completion)]
    simulated = sum(receipt.simulated for receipt in receipts)
    title = f"{len(tickets)} requests, {simulated} of them answered by a simulated model"
    rows = Table(*columns, title=title, box=SIMPLE_HEAD)
    for ticket, outcome in zip(tickets, outcomes, strict=True):
        rows.add_row(*_row(ticket, outcome))
    return rows


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
        format_dollars(receipt.cost_nanousd),
        format_dollars(receipt.saving_nanousd),
    )


def totals(outcomes: list[Outcome]) -> Table:
    """One row per lane, and one for all lanes."""
    rows = Table("lane", "answered", "tokens", "cost", "list price", "saving", box=SIMPLE_HEAD)
    receipts = [outcome.receipt for outcome in outcomes if isinstance(outcome, Completion)]
    for lane in (*LANES, "all"):
        of_lane = [receipt for receipt in receipts if lane in ("all", receipt.lane)]
        cost = sum(receipt.cost_nanousd for receipt in of_lane)
        list_cost = sum(receipt.list_cost_nanousd for receipt in of_lane)
        tokens = sum(receipt.input_tokens + receipt.output_tokens for receipt in of_lane)
        rows.add_row(
            lane,
            str(len(of_lane)),
            str(tokens),
            format_dollars(cost),
            format_dollars(list_cost),
            format_dollars(list_cost - cost),
        )
    return rows


if __name__ == "__main__":
    main()
