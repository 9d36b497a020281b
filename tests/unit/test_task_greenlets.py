"""The loop goes on while a greenlet waits."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable

import greenlet
import pytest
from celery.utils.threads import get_ident

from workers.runtime.loop import task_greenlets


def in_greenlets(*calls: Callable[[], object]) -> None:
    """Call each in a greenlet of a new loop; return when all have ended."""

    async def run() -> None:
        ended = [asyncio.Event() for _ in calls]

        def run_one(call: Callable[[], object], end: asyncio.Event) -> None:
            try:
                call()
            finally:
                end.set()

        for call, end in zip(calls, ended, strict=True):
            task_greenlets.start(lambda call=call, end=end: run_one(call, end))  # type: ignore[misc]
        async with asyncio.timeout(10):
            await asyncio.gather(*(end.wait() for end in ended))

    asyncio.run(run())


def test_a_blocking_call_of_a_greenlet_does_not_block_the_loop() -> None:
    """Each of the two blocks until the other one has started."""
    started = threading.Barrier(2)
    results: list[int] = []

    def meet() -> None:
        results.append(task_greenlets.off_loop(lambda: started.wait(10)))

    in_greenlets(meet, meet)
    assert sorted(results) == [0, 1]


def test_the_error_of_a_blocking_call_is_raised_in_its_greenlet() -> None:
    def fail() -> None:
        raise KeyError("the call's")

    def call() -> None:
        with pytest.raises(KeyError, match="the call's"):
            task_greenlets.off_loop(fail)
        seen.append(True)

    seen: list[bool] = []
    in_greenlets(call)
    assert seen


def test_the_error_of_what_a_greenlet_waits_for_is_in_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may quote a prompt or a key, and has its causes."""

    async def fail() -> None:
        raise KeyError("the body's")

    in_greenlets(lambda: task_greenlets.wait(asyncio.ensure_future(fail())))
    gc.collect()
    assert not caplog.records


def test_a_wait_ends_when_its_future_is_cancelled() -> None:
    def call() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        task_greenlets.wait(future)
        seen.append(future.cancelled())

    seen: list[bool] = []
    in_greenlets(call)
    assert seen == [True]


def test_outside_a_greenlet_a_blocking_call_runs_in_its_own_thread() -> None:
    assert not task_greenlets.is_inside()
    assert task_greenlets.off_loop(threading.current_thread) is threading.current_thread()


def test_celery_keeps_requests_by_greenlet() -> None:
    current: object = get_ident
    assert current is greenlet.getcurrent
