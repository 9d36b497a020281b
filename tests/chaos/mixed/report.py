"""The figures of runs: one table, a JSON file, and what is wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.chaos.mixed.account import CANCELLED
from tests.chaos.mixed.run import Outcome, Plan
from tests.chaos.mixed.settings import VISIBILITY_TIMEOUT_SECONDS

#: Examples of a problem that are shown.
EXAMPLES = 5
Figures = dict[str, Any]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that a share of the sorted values does not exceed; None without values."""
    return round(values[math.ceil(share * len(values)) - 1], 1) if values else None


def figures(outcome: Outcome) -> Figures:
    """Return the figures of one side, by the names that the table shows."""
    account = outcome.account
    outcomes = account.outcomes()
    succeeded, cancelled, open_ = (outcomes.pop(name, 0) for name in ("ok", CANCELLED, "none"))
    repeated, nano = account.repeated_calls()
    redeliveries = account.redeliveries()
    seconds = redeliveries.seconds()
    streams = account.streams()
    return {
        "faults": outcome.faults.total(),
        "requests sent": len(account.sent),
        "succeeded": succeeded,
        "failed with a reason": outcomes.total(),
        "cancelled": cancelled,
        "forgotten with the seconds that Redis lost": len(account.forgotten()),
        "no outcome": open_ - len(account.forgotten()),
        "lines of batches ordered": account.ordered_lines(),
        "lines of batches paid twice": len(account.ordered_twice()),
        "run or changed after a cancel": len(account.run_after_cancel()),
        "follow-ups lost": sum(sent < due for _, due, sent, _ in account.follow_ups()),
        "follow-ups sent again, with a repeated run": account.repeated_follow_ups(),
        "streams read whole": streams.pop("whole", 0),
        "streams that started over or were late": streams.total(),
        "calls in real time paid again": repeated,
        "their price in dollars": round(nano / 1e9, 6),
        "receipts that are not the charge": len(account.wrong_receipts()),
        "left reserved": account.rest.reserved_nanousd,
        "leases left": account.rest.leases,
        "dead letters": account.rest.dead_letters,
        "ends of processes without a signal": len(account.unexpected_exits()),
        "redelivered after a SIGKILL": len(seconds),
        "redelivery p50 in seconds": percentile(seconds, 0.5),
        "redelivery p99 in seconds": percentile(seconds, 0.99),
        "redelivery p99 without outages of Redis": percentile(redeliveries.without_outages(), 0.99),
        "redelivery p99 while a worker of the lane could serve": percentile(
            redeliveries.while_served(), 0.99
        ),
    }


def as_json(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Return what the page of the documentation has of one side."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores",
        "seed": plan.seed,
        "seconds": round(outcome.seconds),
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        "figures": figures(outcome),
        "faults": outcome.account.by_fault(),
    }


def print_table(sides: Mapping[str, Figures]) -> None:
    """Print the figures of all sides beside each other."""
    names = next(iter(sides.values()))
    print(f"{'':54}" + "".join(f"{side:>12}" for side in sides))
    for name in names:
        print(f"{name:54}" + "".join(f"{_text(one[name]):>12}" for one in sides.values()))


def print_problems(name: str, outcome: Outcome) -> None:
    """Print what is wrong, with examples."""
    for problem, texts in outcome.account.problems().items():
        print(f"WRONG: {name}: {problem}: {len(texts)}")
        for text in texts[:EXAMPLES]:
            print(f"    {text}")
    for error in outcome.harness_errors[:EXAMPLES]:
        print(f"HARNESS: {name}: {error}")


def print_faults(outcome: Outcome) -> None:
    """Print how often each fault struck."""
    for name, count in outcome.faults.most_common():
        print(f"  {count:5} {name}")
    for name, count in outcome.missed.items():
        print(f"  {count:5} missed: {name}")


def _text(value: Any) -> str:
    return "-" if value is None else f"{value}"
