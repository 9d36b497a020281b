"""An extension of supervisord: a signal wakes it at once, such as that a process has ended.

supervisord expects that a signal interrupts its wait for a second. Python has waited on since 3.5
(https://peps.python.org/pep-0475/), so each of the stages of a stop took up to a second more. It
also waits before it starts the first process: this wait ends at once too.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def wake_on_signals(poller: Any) -> None:
    """Let signals end the waits of supervisord's poller, and end the first one at once.

    Call it once, in the main thread.
    """
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    os.write(wakes, b"\0")
    poll = poller.poll

    def poll_until_signal(timeout: float) -> tuple[list[int], list[int]]:
        poller.register_readable(woken)
        readable, writable = poll(timeout)
        if woken in readable:
            os.read(woken, 65_536)
            readable.remove(woken)
        return readable, writable

    poller.poll = poll_until_signal
