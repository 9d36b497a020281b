"""Random faults on a running fleet, and on stock Celery: `python -m tests.chaos.mixed`.

Exit status: 0 if the fleet kept every promise, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.mixed.faults import FAULTS
from tests.chaos.mixed.fleet import FleetSide
from tests.chaos.mixed.report import as_json, figures, print_faults, print_problems, print_table
from tests.chaos.mixed.run import Outcome, Plan, Run
from tests.chaos.mixed.stock import StockSide

SIDES = {side.name: side for side in (FleetSide, StockSide)}


def main() -> int:
    """Run one side after the other, and print the table."""
    options = _options()
    plan = Plan(options.seed, options.faults, options.seconds, options.interval)
    print(f"seed {plan.seed}", flush=True)
    outcomes = {name: _outcome(name, plan, options) for name in options.side or SIDES}
    print_table({name: figures(outcome) for name, outcome in outcomes.items()})
    for name, outcome in outcomes.items():
        print_problems(name, outcome)
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        now = {name: as_json(plan, outcome) for name, outcome in outcomes.items()}
        options.json.write_text(json.dumps(before | now, indent=1) + "\n")
    return int(FleetSide.name in outcomes and outcomes[FleetSide.name].is_wrong)


def _outcome(name: str, plan: Plan, options: argparse.Namespace) -> Outcome:
    faults = tuple(
        fault
        for fault in FAULTS
        if options.only in fault.name and fault.name not in options.without
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)) / name
        folder.mkdir(parents=True)
        outcome = Run(plan, SIDES[name](folder), folder).execute(faults)
    print(f"{name}: {outcome.faults.total()} faults in {outcome.seconds:.0f} s")
    print_faults(outcome)
    sys.stdout.flush()
    return outcome


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mixed", description=__doc__)
    add = parser.add_argument
    add("--side", action="append", choices=SIDES, help="default: both")
    add("--faults", type=int, default=1_000, help="on each side; default: %(default)s")
    add("--seconds", type=float, default=1_200, help="at most; default: %(default)s")
    add("--seed", type=int, default=secrets.randbelow(10**6), help="default: random")
    add("--interval", type=float, default=0.4, help="mean seconds between two faults")
    add("--only", default="", metavar="TEXT", help="faults whose name has this text")
    add("--without", action="append", default=[], metavar="NAME", help="a fault to leave out")
    add("--json", type=Path, metavar="FILE", help="write the figures of each side there")
    add("--keep", type=Path, metavar="FOLDER", help="an empty folder for logs and journals")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
