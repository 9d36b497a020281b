"""Messages that no worker can process: they go to a list in Redis, and their tasks fail."""

import base64
import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from celery import current_app
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, NotRegistered, WorkerLostError

from primarch_fleet.queues import SEPARATOR
from workers.runtime.loop.daemon_executor import DaemonExecutor

logger = logging.getLogger(__name__)

#: A longer text is no task id.
MAX_ID_BYTES = 4096

#: In a message that is no JSON. In a text within the message, the quotes would be escaped.
_CORRELATION_ID = re.compile(r'"correlation_id": ?"([^"\\]+)"')

#: Redis list of dead letters, newest first, and the hash that counts them.
DEAD_LETTERS, DEAD_LETTER_COUNTS = LETTER_KEYS = ("fleet:dead_letters", "fleet:dead_letter_counts")
#: The newest dead letters are kept, up to so many and so many bytes.
MAX_LETTERS, MAX_BYTES = 1000, 64 * 2**20
#: Characters of a reason.
MAX_ERROR_LENGTH = 1000
#: The fields of a task's request by which other tasks are told that it failed.
TOLD_OF_FAILURES = ("errbacks", "chain", "chord")


@dataclass(frozen=True)
class DeadLetter:
    """An entry of `fleet:dead_letters`, stored as JSON with the Unix seconds `at`."""

    kind: str
    queue: str
    error: str
    message: str

    @property
    def seen_key(self) -> str:
        """The Redis key that says that the message is a dead letter already."""
        digest = hashlib.sha256(self.message.encode(errors="replace")).hexdigest()
        return f"fleet:dead_letter_seen:{digest}"

    def script_args(self) -> list[str | int]:
        """Return the arguments of the scripts that keep it: its text, its count, the limits."""
        counted_as = f"{self.kind}:{self.queue}"
        return [json.dumps(asdict(self)), counted_as, MAX_LETTERS, MAX_BYTES]


class LetterCounts(NamedTuple):
    """How many dead letters there are, and were."""

    kept: int
    #: Those that were dropped because too many were kept.
    dropped: int
    by_kind_and_queue: dict[tuple[str, str], int]


def read_counts(client: Any) -> LetterCounts:
    """Read the counts in one round trip.

    Args:
        client: Of redis-py, sync. It may decode responses.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.llen(DEAD_LETTERS)
    pipeline.hgetall(DEAD_LETTER_COUNTS)
    kept, counts = pipeline.execute()
    named = {_text(name): int(number) for name, number in counts.items()}
    dropped = named.pop("dropped", 0)
    parts = {name.partition(":"): number for name, number in named.items() if ":" in name}
    return LetterCounts(kept, dropped, {(kind, queue): n for (kind, _, queue), n in parts.items()})


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Undeliverable(Exception):
    """A message cannot be processed."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(kind, error)
        self.kind, self.error = kind, error

    def dead_letter(self, queue: str, message: str) -> DeadLetter:
        """Return the entry for a message of a queue, given by its name or one of its lists."""
        error = f"{type(self.error).__name__}: {self.error}"[:MAX_ERROR_LENGTH]
        return DeadLetter(self.kind, queue.partition(SEPARATOR)[0], error, message)

    def task_error(self) -> Exception:
        """Return an error of Celery's for the task's result, which any producer can decode."""
        if isinstance(self.error, NotRegistered | WorkerLostError):
            return self.error
        return InvalidTaskError(f"{self.kind}: {self.error}")


def task_request(text: str) -> Context | None:
    """Rebuild a task's request from its message, as far as it can be read; None without a task id.

    The arguments and the callbacks of the message's body (errbacks, chain, chord) are part of it.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        found = _CORRELATION_ID.search(text)
        message = {"properties": {"correlation_id": found[1]}} if found else None
    headers, properties = _object(message, "headers"), _object(message, "properties")
    args, kwargs, callbacks = _body(message)
    ids = (headers.get("id"), properties.get("correlation_id"), callbacks.get("id"))
    task_id = next((task_id for task_id in ids if _is_task_id(task_id)), None)
    if task_id is None:
        return None
    request = {**headers, **callbacks, "args": args, "kwargs": kwargs, "id": task_id}
    return Context({**request, "delivery_info": {}})


def _object(message: Any, field: str) -> dict[str, Any]:
    value = message.get(field) if isinstance(message, dict) else None
    return value if isinstance(value, dict) else {}


def _body(message: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return the arguments and the callbacks of a message; empty where they cannot be read."""
    try:
        body = json.loads(base64.b64decode(message["body"]))
        # Protocol 1 has one object, protocol 2 a list.
        args, kwargs, callbacks = (body, {}, body) if isinstance(body, dict) else body
        return args, kwargs, dict(callbacks or {})
    except (KeyError, TypeError, ValueError, RecursionError):
        return (), {}, {}


def _is_task_id(value: object) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:  # no producer can wait for it
        return False


#: Fails tasks one after another. A daemon: a publish that waits for Redis must not keep the process
#: from ending.
_other_thread = DaemonExecutor(1)


def fail_task(request: Context, error: Exception) -> None:
    """Fail the task of a dead letter.

    On another thread if other tasks are told: a publish waits while the server refuses writes.
    """
    backend = current_app.backend
    if any(getattr(request, name, None) for name in TOLD_OF_FAILURES):
        _other_thread.submit(_fail_or_log, request, error, backend)
    else:
        fail_request(request, error, backend)


def _fail_or_log(request: Context, error: Exception, backend: Any) -> None:
    try:
        fail_request(request, error, backend)
    except Exception:
        action = {"action": "dead_letter_task_not_failed"}
        logger.exception("The task of a dead letter was not failed", extra=action)


def fail_request(request: Context, error: Exception, backend: Any = None) -> None:
    """Fail a task as Celery does: its result, errbacks, chain and chord.

    The result is stored even if the request names its group, chain, chord or errbacks wrongly.

    Args:
        backend: The result backend; by default, that of the thread's app.
    """
    backend, task_id = backend or current_app.backend, str(request.id)
    try:
        backend.mark_as_failure(task_id, error, request=request)
    except Exception as exc:
        logger.error(
            "Task %s: what follows it was not told that it failed: %s",
            task_id,
            type(exc).__name__,
            extra={"action": "dead_letter_links_malformed"},
        )
        backend.mark_as_failure(task_id, error)
