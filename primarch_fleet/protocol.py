"""How requests travel as Celery messages: names, headers and a producer's Celery app."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import TaskRevokedError

from primarch_fleet.contract import SCHEMA_VERSION, Completion, Lane
from primarch_fleet.errors import (
    Cancelled,
    DeadlineExceeded,
    FleetError,
    InvalidRequest,
    RequestFailed,
    error_class,
)

#: Message headers: when it was submitted (Unix time, seconds) and why this lane.
SUBMITTED_AT, LANE_REASON = "fleet_submitted_at", "fleet_lane_reason"
#: Message header of the local lane: `Request.prefixes()`, separated by commas.
PREFIXES = "fleet_prefixes"
#: Message header: whose it is, by `tenant`. Tenants take turns (lua/turns.lua); messages
#: without it are those of one more tenant.
TENANT = "fleet_tenant"
#: Message header of the local lane: Unix time of the deadline of a request that the realtime lane
#: may serve in its place.
DEADLINE = "fleet_deadline"
#: What logs and Flower show in place of a prompt.
HIDDEN_ARGUMENTS = "<hidden>"


def task_name(lane: Lane, verb: str) -> str:
    """`realtime.complete`, `batch.embed`: the lane and what it does."""
    return f"{lane}.{verb}"


def tenant_header(tenant_id: str) -> str:
    """A tenant as the header says it: in JSON, just its text between quotes."""
    return quote(tenant_id, safe="")


def wire_size_bytes(body: dict[str, Any]) -> int:
    """Bytes of a wire form as JSON. Raises InvalidRequest for text that is not Unicode."""
    try:
        return len(json.dumps(body, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise InvalidRequest("request: its text holds a lone surrogate, not Unicode") from None


def error_value(error: FleetError) -> dict[str, Any]:
    """An error as the value of a task: `{"error": {"code", "message", "retryable"}}`."""
    of = {"code": error.code, "message": str(error), "retryable": error.retryable}
    return {"schema_version": SCHEMA_VERSION, "error": of}


def completion_or_raise(outcome: object) -> Completion:
    """A task's outcome, as the completion or as one of the fleet's errors, raised."""
    if isinstance(outcome, dict) and "error" in outcome:
        raise error_class(outcome["error"]["code"])(outcome["error"]["message"])
    if isinstance(outcome, FleetError):
        raise outcome
    if isinstance(outcome, TaskRevokedError):
        raise (DeadlineExceeded if "expired" in str(outcome) else Cancelled)() from outcome
    if isinstance(outcome, BaseException):
        raise RequestFailed(f"{type(outcome).__name__}: {outcome}") from outcome
    return Completion.model_validate(outcome)


class ProducerResultBackend(RedisBackend):
    """Celery's result store, which `get()` asks; submitting alone does not subscribe to it.

    Celery makes one for each thread, and leaves it to the garbage collector.
    """

    # What this relies on and celery-types does not know.
    app: _ProducerApp
    result_consumer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app.result_stores.add(self)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: two round trips a submit fewer, and none that could hang."""

    def close(self) -> None:
        """Give the connections back."""
        self.result_consumer.stop()
        self.client.connection_pool.disconnect()


class _ProducerApp(Celery):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: That its threads have waited for results with.
        self.result_stores: WeakSet[ProducerResultBackend] = WeakSet()

    def close(self) -> None:
        """Give the connections back.

        Those to the broker stay: kombu keeps a few for all apps of the process that have its URL.
        """
        for store in list(self.result_stores):
            store.close()
        super().close()


def producer_app(url: str, timeout: float) -> Celery:
    """A Celery app that only sends: JSON, and errors within `timeout` seconds, never a hang."""
    backend = f"{ProducerResultBackend.__module__}:{ProducerResultBackend.__qualname__}+{url}"
    app = _ProducerApp("primarch_fleet", broker=url, backend=backend, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_create_missing_queues=True,
        task_default_queue="realtime",
        broker_connection_timeout=timeout,
        broker_transport_options={
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "max_retries": 1,
        },
        task_publish_retry=False,
        redis_socket_timeout=timeout,
        redis_socket_connect_timeout=timeout,
        redis_backend_health_check_interval=10,
    )
    return app
