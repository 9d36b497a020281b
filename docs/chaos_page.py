"""The page of random faults, from the figures of the last full run.

`make chaos ARGS="--json tests/chaos/mixed/results.json"` makes these figures.
"""

from __future__ import annotations

import json
from typing import Any

from config.settings import ROOT
from docs.grid import grid
from tests.chaos.mixed.faults import FAULTS

RESULTS = ROOT / "tests" / "chaos" / "mixed" / "results.json"

INTRODUCTION = (
    "`make chaos` starts two workers of each lane, beat and two producers, and lets random faults "
    "strike them while requests of all lanes run: streams, links, chains, chords across lanes, "
    "cancels, countdowns, idempotency keys, and plain Celery producers. The processes are forked, "
    "so that hundreds of starts fit into a run. A simulated provider, which no fault strikes, "
    "writes down each call, each charge and each batch. The account at the end compares this "
    "journal with those of the producers and with what is left in Redis. Requests that were sent "
    "in the seconds that a roll-back took from Redis count as forgotten: `appendfsync everysec` "
    "promises no more. The seed is printed: "
    '`ARGS="--seed N"` draws the same faults and requests again, at other moments.'
)
REDELIVERY = (
    "A redelivery lasts from the SIGKILL of the process that ran a request to its next start. In a "
    "run Redis often does not answer, and often both workers of a lane are killed, stopped, "
    "starting or separated from Redis. So there are three figures. The first has all of it. The "
    "second leaves out the seconds in which Redis could deliver nothing. The last is what the "
    "fleet itself takes: it begins with the last fault that took the message from a process, "
    "counts the visibility timeout and, after that, the seconds in which a worker of the lane was "
    "ready, running and connected. What a worker needs to connect again counts too. Requests that "
    "Redis forgot, so that their producers sent them again, are left out. A dead letter is a "
    "message whose worker died as often as `max_deliveries` allows: a request then fails with that "
    "reason, and one of beat's messages is only missed."
)
STOCK = (
    '"Stock" is Celery with `acks_late`, `reject_on_worker_lost`, the same visibility timeout, the '
    "`redis://` transport and the threads pool, under the same faults. It gets the plain requests "
    "of the same mix: it has no batch lane, no streams, no budgets, and no cancel of a running "
    "task on this pool."
)


def page(generated: str) -> str:
    """Return the page.

    Args:
        generated: The comment of generated pages.
    """
    sides = json.loads(RESULTS.read_text())
    names = list(next(iter(sides.values()))["figures"])
    figures = [
        (name, *(_text(side["figures"].get(name)) for side in sides.values())) for name in names
    ]
    runs = [
        f"{name}: {side['date']}, seed {side['seed']}, {side['figures']['faults']} faults in "
        f"{side['seconds']} s, {side['machine']}, visibility timeout "
        f"{side['visibility_timeout']:g} s"
        for name, side in sides.items()
    ]
    return (
        "\n\n".join(
            [
                "# Random faults",
                generated,
                INTRODUCTION,
                "\n".join(f"- {run}" for run in runs),
                grid(("", *sides), figures),
                REDELIVERY,
                STOCK,
                "## The faults",
                "How often each fault struck the fleet, how many requests were under way at these "
                "moments, and how many of them were lost.",
                grid(("Fault", "What it does", "Struck", "Under way", "Lost"), _faults(sides)),
            ]
        )
        + "\n"
    )


def _faults(sides: dict[str, Any]) -> list[tuple[str, ...]]:
    of_fleet = sides["fleet"]["faults"]
    return [
        (fault.name, _first_line(fault), *map(str, of_fleet.get(fault.name, (0, 0, 0))))
        for fault in FAULTS
    ]


def _first_line(fault: type) -> str:
    return (fault.__doc__ or "").partition("\n")[0]


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,}"
