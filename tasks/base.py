"""The base class of the fleet's tasks: their bodies are `async def`, their arguments private.

Celery calls a task synchronously. A bridge around the body gives it to the runner of the calling
context, which a worker pool sets; without a runner it calls `asyncio.run` (eager mode, the solo and
prefork pools, a direct call).
"""

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

from celery import Celery, Task
from celery.app.task import Context
from celery.worker.request import Request
from celery.worker.state import revoked

from primarch_fleet.errors import FleetError
from primarch_fleet.protocol import HIDDEN_ARGUMENTS, RESERVED
from primarch_fleet.server_clock import CLOCK
from tasks import event_text
from tasks.message_check import check_message

Body = Callable[[], Coroutine[Any, Any, Any]]
Runner = Callable[[Body], Any]

# What runs the bodies of tasks. A body does not inherit it: waiting for a nested body would block
# the loop that has to run it.
_runner: ContextVar[Runner | None] = ContextVar("runner", default=None)

# The text of the last result, for its event.
_result_text: ContextVar[str] = ContextVar("result_text", default=HIDDEN_ARGUMENTS)

# The running task's name and request: Celery keeps requests by thread, the body runs on another.
_running: ContextVar[tuple[str, Context] | None] = ContextVar("running_task", default=None)


@contextmanager
def runner(run: Runner) -> Iterator[None]:
    """Within the block, run the bodies of tasks that its thread or greenlet calls with `run`.

    Args:
        run: Takes a function that creates the coroutine, and must call it on the thread that runs
            the coroutine. Returns the coroutine's result or raises its exception.
    """
    token = _runner.set(run)
    try:
        yield
    finally:
        _runner.reset(token)


def _run_here(body: Body) -> Any:
    return asyncio.run(body())


#: The parts of a message that name other tasks.
FOLLOWERS = ("callbacks", "errbacks", "chain", "chord")


class PrivateRequest(Request):
    """A message whose arguments and result appear in no log and no event.

    `event_text` says what appears in their place, whatever the producer shows.

    Raises:
        InvalidTaskError: A part of the message has a wrong type.
    """

    #: Calls a function on another thread, for a request; a worker's consumer sets it.
    run_aside: ClassVar[Callable[["PrivateRequest", Callable[[], None]], object] | None] = None

    def __init__(self, message: Any, *args: Any, **options: Any) -> None:
        super().__init__(message, *args, **options)
        args, kwargs, embed = self._payload  # type: ignore[attr-defined]
        check_message(self.request_dict, embed)
        #: Whether other tasks are told of the end of this one: links, chains, chords, errbacks.
        self.has_followers = any((embed or {}).get(name) for name in FOLLOWERS)
        if (eta := self.eta) is not None:  # Celery's timer follows the host's clock
            self._eta = CLOCK.to_host(eta)
        #: When the worker received the message, by `time.monotonic`.
        self.received_at = time.monotonic()
        self._argsrepr = event_text.of_arguments(str(self.name), args, kwargs)
        self._kwargsrepr = HIDDEN_ARGUMENTS
        self._request_dict |= {  # type: ignore[attr-defined]
            "argsrepr": self._argsrepr,
            "kwargsrepr": HIDDEN_ARGUMENTS,
            RESERVED: message.properties.pop(RESERVED, None),
        }

    def maybe_expire(self) -> Literal[True] | None:
        """Return whether the message has expired by the server's time; if so, revoke it.

        A message that was cancelled before, or has expired before, has this outcome already.
        """
        if (
            self.expires is None
            or self.id in revoked
            or CLOCK.timestamp() <= self.expires.timestamp()
        ):
            return None
        revoked.add(self.id)
        return True

    def _announce_revoked(self, *outcome: Any) -> None:
        """End a revoked task as Celery does, but publish nothing on the main thread.

        A publish waits while the server refuses writes, and an error of it would end the worker.
        """
        end = functools.partial(super()._announce_revoked, *outcome)  # type: ignore[misc]
        is_main = threading.current_thread() is threading.main_thread()
        if not (self.has_followers and is_main and PrivateRequest.run_aside):
            end()
            return
        self._already_revoked = True
        PrivateRequest.run_aside(self, end)

    def on_aside(self, *_: object) -> None:
        """Do nothing: what runs aside is no run of the task."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event as Celery does, which has no text for a result: that of `event_text`."""
        if type == "task-succeeded":
            fields["result"] = _result_text.get()
            _result_text.set(HIDDEN_ARGUMENTS)
        super().send_event(type, **fields)

    def info(self, safe: bool = False) -> Any:
        """Describe the task for `inspect` and Flower, whose replies are stored in Redis."""
        return super().info(safe=True)


class AsyncTask(Task):  # type: ignore[type-arg]
    """A task whose `run` may be `async def`. A plain `def` stays as it is.

    `self.request` is right in the coroutine and in what it awaits or gathers. `self.retry`,
    `autoretry_for`, `Ignore` and `Reject` work as in a plain task. `self.retry` publishes a
    message, which blocks the loop until the broker has it.

    Neither arguments nor results appear in logs and events, but what `event_text` says of them.
    """

    abstract = True
    Request = "tasks.base:PrivateRequest"
    resultrepr_maxsize = 0
    #: Expected errors, logged in one line without a traceback.
    throws = (FleetError,)
    #: Whether the body is a coroutine.
    is_async = False

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Replace an `async def run` by its bridge, before Celery wraps it for autoretry."""
        run = inspect.getattr_static(cls, "run")
        body = getattr(run, "__func__", run)
        if inspect.iscoroutinefunction(body):
            cls.is_async = True
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
            run_body = _runner.get() or _run_here
            hidden = _runner.set(None)
            try:
                return run_body(functools.partial(body, *args, **kwargs))
            finally:
                _runner.reset(hidden)
                _running.reset(token)

        return run

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Keep the text of the result for the event, which Celery sends in the same context."""
        _result_text.set(event_text.of_result(retval))

    @property
    def request(self) -> Context:
        """The request of the current run, on any thread; an empty request outside a run."""
        name, request = _running.get() or ("", None)
        return request if request and name == self.name else self._get_request()  # type: ignore[attr-defined]

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Send the task as Celery does, with its arguments hidden from logs and events."""
        options.setdefault("argsrepr", HIDDEN_ARGUMENTS)
        options.setdefault("kwargsrepr", HIDDEN_ARGUMENTS)
        return super().apply_async(*args, **options)
