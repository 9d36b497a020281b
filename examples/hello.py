"""Ask the fleet that `make up` started: `python examples/hello.py [question]`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # in a service the package is installed

from primarch_fleet import CompletionRequest, Fleet, FleetError  # noqa: E402


def main() -> None:
    question = " ".join(sys.argv[1:]) or "Why is the sky blue?"
    try:
        with Fleet(redis_url()) as fleet:
            ticket = fleet.submit(
                CompletionRequest(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": question}]
                )
            )
            completion = fleet.result(ticket, timeout=30)
    except FleetError as error:
        sys.exit(f"{error.code}: {error}")
    print(completion.text)
    print(completion.receipt)


def redis_url() -> str:
    """Return FLEET_REDIS_URL, or the Redis URL that `make up` has written to its data folder."""
    if url := os.environ.get("FLEET_REDIS_URL"):
        return url
    path = Path(os.environ.get("FLEET_DATA_DIR") or ROOT / ".fleet", "addresses.yaml")
    if not path.exists():
        sys.exit("No fleet is running: start one with `make up` in another terminal.")
    return path.read_text().splitlines()[0].removeprefix("redis: ")


if __name__ == "__main__":
    main()
