"""An executor that does not keep its process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

DEFAULT_THREADS = 16


class DaemonExecutor(ThreadPoolExecutor):
    """Runs calls in at most `max_workers` daemon threads.

    Python waits for the threads of a ThreadPoolExecutor before the process ends. A call that
    repeats until a server answers, as kombu's do, would keep the process running.

    It is a ThreadPoolExecutor because asyncio accepts no other default executor. The threads end
    with the process; `shutdown` ends none.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        threads = max_workers or DEFAULT_THREADS
        super().__init__(threads)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._places = threading.Semaphore(threads)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn(*args, **kwargs)` in a thread, and return the future of what it returns."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        if self._places.acquire(blocking=False):
            threading.Thread(target=self._run_calls, name="daemon-call", daemon=True).start()
        return future

    def _run_calls(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
