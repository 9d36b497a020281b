"""What the commands of `fleet` import: a command answers in less than half a second."""

import subprocess
import sys

SLOW = ("litellm", "openai", "supervisor", "flower", "celery.worker", "starlette")


def test_commands_import_nothing_that_is_slow() -> None:
    code = "import sys, primarch_fleet.cli.main, scheduler.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(SLOW) & set(done.stdout.split()) == set()
