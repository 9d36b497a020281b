"""Malformed messages against a real fleet: `python -m tests.fuzz --messages 100000`.

A worker process of each lane takes them, from a real server. Exit status: 0 if no worker exited, no
message is left, and each task that a message names has an outcome; 1 if not.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.fuzz.fleet import fuzz_fleet
from tests.fuzz.run import Run


def main() -> int:
    """Run, and print the account."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="default: random"
    )
    parser.add_argument("--keep", type=Path, help="an empty folder for the logs")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with fuzz_fleet(folder) as fleet:
            fleet.wait_until_ready()
            account = Run(fleet, options.seed).execute(options.messages)
    print(account)
    return 1 if account.failed else 0


if __name__ == "__main__":
    sys.exit(main())
