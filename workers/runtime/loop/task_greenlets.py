"""Greenlets: Celery's tracer runs on the event loop's thread, and the loop goes on while it waits.

The tracer is synchronous. In a thread it would block that thread while the task's body runs; in a
greenlet it is set aside, and continued by the loop when what it waits for is done.

What a greenlet calls must wait by the functions of this module. Anything else that blocks would
block the loop, and with it the bodies of all tasks.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _TaskGreenlet(greenlet):
    """A greenlet of this module; its parent is the loop."""


def start(run: Callable[[], None]) -> None:
    """Call `run` in a greenlet, and return when it waits or has ended. Call this on the loop."""
    _TaskGreenlet(run).switch()


def is_inside() -> bool:
    """Return whether the caller runs in a greenlet."""
    return isinstance(getcurrent(), _TaskGreenlet)


def wait(future: asyncio.Future[Any]) -> None:
    """Set the greenlet aside until a future of the loop is done or cancelled; raise nothing."""
    current = getcurrent()
    loop: Any = current.parent

    def resume(done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # the caller's to handle; asyncio would log it with its causes
        current.switch()

    future.add_done_callback(resume)
    loop.switch()


def off_loop(call: Callable[[], T]) -> T:
    """Return what a blocking call returns, or raise its error; in a greenlet, the loop goes on.

    Each call has a thread, so this is for what seldom happens.
    """
    if not is_inside():
        return call()
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    # A daemon: a call that waits for Redis must not keep the process from ending.
    threading.Thread(target=run, name="off-loop", daemon=True).start()
    wait(asyncio.wrap_future(result))
    return result.result()
