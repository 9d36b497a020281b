"""supervisord's wait ends with a signal."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from supervisor.poller import PollPoller, SelectPoller

from workers.onebox.signal_wakeup import wake_on_signals

#: Longer than a test may take.
WAIT_SECONDS = 3_600


@contextmanager
def kill_soon() -> Iterator[None]:
    timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    yield
    timer.join()


@pytest.mark.parametrize("kind", [PollPoller, SelectPoller])
def test_the_first_wait_ends_at_once_and_others_with_a_signal_before_or_meanwhile(
    kind: type,
) -> None:
    poller = kind(SimpleNamespace())
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    fd = signal.set_wakeup_fd(-1)
    try:
        wake_on_signals(poller)
        assert poller.poll(WAIT_SECONDS) == ([], [])
        signal.raise_signal(signal.SIGUSR2)
        assert poller.poll(WAIT_SECONDS) == ([], [])
        assert poller.poll(0) == ([], [])
        with kill_soon():
            assert poller.poll(WAIT_SECONDS) == ([], [])
    finally:
        signal.set_wakeup_fd(fd)
        signal.signal(signal.SIGUSR2, before)
