"""What `fleet queues` shows."""

from __future__ import annotations

from rich.console import Console

from scheduler.admin.queues import QueueStatus, queues_table


def test_the_rate_is_named_a_capacity_because_nothing_may_be_answered_now() -> None:
    status = QueueStatus("realtime", 0, None, 0, 2, 72.12, paused=False)
    console = Console(width=140)
    with console.capture() as shown:
        console.print(queues_table([status]))
    assert "capacity (requests/s)" in shown.get()
    assert "72.1" in shown.get()
