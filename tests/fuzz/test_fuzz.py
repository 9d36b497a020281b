"""A short run of malformed messages against real workers; `make fuzz` is the long one."""

from pathlib import Path

from tests.fuzz.fleet import fuzz_fleet
from tests.fuzz.run import Run


def test_no_message_ends_a_worker_or_leaves_a_task_without_an_outcome(tmp_path: Path) -> None:
    with fuzz_fleet(tmp_path) as fleet:
        fleet.wait_until_ready()
        account = Run(fleet, number=1).execute(messages=600)
    assert not account.failed, str(account)
    assert account.dead_letters
