"""The base class of the fleet's tasks, and the seam by which a worker pool runs their bodies.

A body is `async def`; Celery calls a task synchronously. Between the two stands a bridge: it hands
the body to the runner of the calling thread, or to `asyncio.run` where there is none (eager mode,
the solo and prefork pools, a direct call).
"""

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task
from celery.app.task import Context
from celery.worker.request import Request

from primarch_fleet.errors import FleetError
from primarch_fleet.protocol import HIDDEN_ARGUMENTS

Body = Callable[[], Coroutine[Any, Any, Any]]
Runner = Callable[[Body], Any]

# A thread's own, not a context variable: the body must not inherit it on the loop's thread, where
# waiting for a nested body would stop the loop that is to run it.
_thread = threading.local()

# The task being run and its request: Celery keeps requests per thread, the body runs on another.
_running: ContextVar[tuple[str, Context] | None] = ContextVar("running_task", default=None)


@contextmanager
def runner(run: Runner) -> Iterator[None]:
    """Within the block, the bodies of tasks that this thread calls are run by `run`.

    `run` gets a function that makes the coroutine, to be called where the coroutine is to live; it
    returns the coroutine's result or raises its exception.
    """
    _thread.run = run
    try:
        yield
    finally:
        del _thread.run


def _run_here(body: Body) -> Any:
    return asyncio.run(body())


class PrivateRequest(Request):
    """A message whose arguments no log and no event shows, whoever sent it."""

    def __init__(self, message: Any, *args: Any, **options: Any) -> None:
        super().__init__(message, *args, **options)
        #: When the worker had it, by `time.monotonic`.
        self.received_at = time.monotonic()
        self._argsrepr = self._kwargsrepr = HIDDEN_ARGUMENTS
        self._request_dict |= {"argsrepr": HIDDEN_ARGUMENTS, "kwargsrepr": HIDDEN_ARGUMENTS}  # type: ignore[attr-defined]


class AsyncTask(Task):  # type: ignore[type-arg]
    """A task whose `run` may be `async def`. A plain `def` is left as it is.

    `self.request` is right inside the coroutine and what it awaits or gathers. `self.retry`,
    `autoretry_for`, `Ignore` and `Reject` work as in a plain task; `self.retry` publishes a
    message, so it holds up the loop for one round trip to the broker.

    Neither arguments nor results are shown in logs and events.
    """

    abstract = True
    Request = "tasks.base:PrivateRequest"
    resultrepr_maxsize = 0
    #: What a request can come to: logged in a line, without a traceback.
    throws = (FleetError,)

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Put the bridge in place of an `async def run`, before Celery wraps it for autoretry."""
        run = inspect.getattr_static(cls, "run")
        body = getattr(run, "__func__", run)
        if inspect.iscoroutinefunction(body):
            bridge = cls._bridge(body, bound=body is run)
            cls.run = bridge if body is run else staticmethod(bridge)  # type: ignore[method-assign]

    @classmethod
    def _bridge(
        cls, body: Callable[..., Coroutine[Any, Any, Any]], bound: bool
    ) -> Callable[..., Any]:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            task = args[0] if bound else cls
            token = _running.set((task.name, task.request_stack.top))
            try:
                runner = getattr(_thread, "run", _run_here)
                return runner(functools.partial(body, *args, **kwargs))
            finally:
                _running.reset(token)

        return run

    @property
    def request(self) -> Context:
        """The request being served, on any thread; an empty one outside a run."""
        name, request = _running.get() or ("", None)
        return request if request and name == self.name else self._get_request()  # type: ignore[attr-defined]

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Celery's own, except that the message does not show its arguments in logs and events."""
        options.setdefault("argsrepr", HIDDEN_ARGUMENTS)
        options.setdefault("kwargsrepr", HIDDEN_ARGUMENTS)
        return super().apply_async(*args, **options)
