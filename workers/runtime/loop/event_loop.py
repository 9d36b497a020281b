"""The event loop of a worker process: it runs the bodies of all tasks, on a thread of its own."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)

StopHook = Callable[[], Awaitable[Any]]

#: Seconds that the hooks of `at_stop` have to end, all together.
CLOSE_SECONDS = 5.0

#: The name of the asyncio tasks that run the bodies of Celery tasks.
BODY_TASK_NAME = "fleet-body"


class _LoopThread:
    """An event loop on a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.hooks: list[StopHook] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fleet-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # raised by an asyncio task that a body started
                action = {"action": "loop_exit_prevented"}
                logger.exception("An asyncio task tried to exit; the loop goes on", extra=action)

    def stop(self, seconds: float) -> None:
        """Run the hooks, cancel what still runs, stop the loop: in little more than `seconds`."""
        closing = asyncio.run_coroutine_threadsafe(self._close(seconds), self.loop)
        with suppress(TimeoutError, CancelledError):
            closing.exception(seconds + 1)
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1)
        if self._thread.is_alive():
            logger.error("The event loop is blocked", extra={"action": "loop_blocked"})
        else:
            self.loop.close()

    async def _close(self, seconds: float) -> None:
        deadline = self.loop.time() + seconds
        if bodies := [task for task in asyncio.all_tasks() if task.get_name() == BODY_TASK_NAME]:
            await asyncio.wait(bodies, timeout=seconds / 2)  # may still use what the hooks close
        for hook in reversed(self.hooks):
            try:
                async with asyncio.timeout_at(deadline):
                    await hook()
            except Exception:
                logger.exception("A stop hook failed", extra={"action": "stop_hook_failed"})
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=max(0.1, deadline - self.loop.time()))
        await self.loop.shutdown_asyncgens()


_running: _LoopThread | None = None
_lock = threading.Lock()


def _loop_thread() -> _LoopThread:
    global _running  # noqa: PLW0603 - one loop a process
    with _lock:
        _running = _running or _LoopThread()
        return _running


def get() -> asyncio.AbstractEventLoop:
    """The process's event loop, running on its own thread; started by the first call.

    Task bodies run on it, so create clients that outlive a task (HTTP sessions, routers) on it. It
    runs until the pool has stopped.
    """
    return _loop_thread().loop


def at_stop(hook: StopHook) -> None:
    """Await `hook()` on the loop after the pool has stopped and before the loop stops.

    Hooks run newest first and share `CLOSE_SECONDS`; a hook that fails is logged.
    """
    _loop_thread().hooks.append(hook)


def stop() -> None:
    """Run the hooks of `at_stop` and stop the loop, if there is one. `get()` starts a new one."""
    global _running
    with _lock:
        stopping, _running = _running, None
    if stopping:
        stopping.stop(CLOSE_SECONDS)
