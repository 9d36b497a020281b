"""Faults on a running fleet, and an account: `python -m tests.chaos.mixed`.

Exit status: 0 if every promise was kept, 1 if not.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.mixed.report import print_outcome
from tests.chaos.mixed.run import Plan, Run


def main() -> int:
    """Run, and print the account."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mixed", description=__doc__)
    parser.add_argument("--faults", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=1_800, help="at most; default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="default: random"
    )
    parser.add_argument("--interval", type=float, default=0.7, help="mean seconds between faults")
    parser.add_argument("--keep", type=Path, help="an empty folder for the logs and journals")
    options = parser.parse_args()
    plan = Plan(options.seed, options.faults, options.seconds, options.interval)
    print(f"seed {plan.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = Run(plan, folder).execute()
    print_outcome(outcome)
    return 1 if outcome.account.problems() or outcome.harness_errors else 0


if __name__ == "__main__":
    sys.exit(main())
