"""The tables of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.chaos.mixed.run import Outcome

#: Examples of a problem that are shown.
EXAMPLES = 5


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the sorted values does not exceed."""
    return values[math.ceil(share * len(values)) - 1] if values else math.nan


def print_outcome(outcome: Outcome) -> None:
    """Print the faults, the account, and what is wrong."""
    account = outcome.account
    print(f"{outcome.faults.total()} faults in {outcome.seconds:.0f} s")
    for name, count in outcome.faults.most_common():
        print(f"  {count:5} {name}")
    for name, count in outcome.missed.items():
        print(f"  {count:5} missed: {name}")
    print(f"{len(account.sent)} requests sent, {account.unsure} unsure")
    for name, count in account.outcomes().most_common():
        print(f"  {count:5} {name}")
    print(f"  {len(account.forgotten()):5} forgotten by a roll-back")
    print(f"streams: {dict(account.streams())}")
    repeated, nano = account.repeated_calls()
    print(f"answers paid again after a fault: {repeated}, ${nano / 1e9:.6f}")
    seconds = account.redelivery_seconds()
    print(
        f"redelivery: {len(seconds)}, p50 {percentile(seconds, 0.5):.1f} s, "
        f"p99 {percentile(seconds, 0.99):.1f} s"
    )
    print(f"rest: {account.rest.dead_letters} dead letters")
    for name, texts in account.problems().items():
        print(f"WRONG: {name}: {len(texts)}")
        for text in texts[:EXAMPLES]:
            print(f"    {text}")
    for error in outcome.harness_errors[:EXAMPLES]:
        print(f"HARNESS: {error}")
