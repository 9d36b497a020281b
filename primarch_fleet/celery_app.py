"""The Celery app of producers: it sends messages and waits for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

from celery import Celery
from celery.app import control
from kombu import pidbox

from primarch_fleet import redis_support
from primarch_fleet.celery_redis import PrimaryBackend, broker_url
from primarch_fleet.redis_url import normalized


class ProducerResultBackend(PrimaryBackend):
    """Celery's Redis result backend, without a subscription for each submitted task.

    Celery creates a backend for each thread, and leaves it to the garbage collector.
    """

    # Not in celery-types.
    app: _ProducerApp
    result_consumer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app.result_backends.add(self)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing: saves two round trips for each submit, and both could hang."""

    def close(self) -> None:
        """Close the connections."""
        self.result_consumer.stop()
        self.client.connection_pool.disconnect()


class _Mailbox(pidbox.Mailbox):
    """kombu's mailbox, without its endless attempts to reach a lost broker."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """Yield a producer of messages that tries once."""
        with super().producer_or_acquire(producer, channel) as found:

            def publish(*args: Any, **options: Any) -> Any:
                return found.publish(*args, **options | {"retry": False})

            yield SimpleNamespace(publish=publish)


class ProducerControl(control.Control):
    """Celery's control commands, with this mailbox."""

    Mailbox = _Mailbox


class _ProducerApp(Celery):
    """An app whose broker and backend are its own.

    Celery prefers the variables CELERY_BROKER_URL and CELERY_RESULT_BACKEND to what an app says. In
    a service they are those of the service's own app.
    """

    control_cls = f"{__name__}:ProducerControl"

    def __init__(self, broker: str, backend: str) -> None:
        super().__init__("primarch_fleet", broker=broker, backend=backend, set_as_current=False)
        self.backend_cls = backend
        self._broker = broker
        #: The backends with which threads of this app have waited for results.
        self.result_backends: WeakSet[ProducerResultBackend] = WeakSet()

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(url or self._broker, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(url or self._broker, **options)

    def close(self) -> None:
        """Close the connections of the result backends.

        Connections to the broker stay: kombu shares a few between all apps of the process.
        """
        for backend in list(self.result_backends):
            backend.close()
        super().close()


def producer_app(url: str, timeout: float) -> Celery:
    """Return a Celery app that only sends, as JSON.

    Args:
        timeout: Seconds after which an unreachable broker is an error.

    Raises:
        ConfigError: The URL is wrong.
    """
    url = normalized(url)
    backend = f"{ProducerResultBackend.__module__}:{ProducerResultBackend.__qualname__}+{url}"
    app = _ProducerApp(broker_url(url), backend)
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
        redis_backend_health_check_interval=redis_support.HEALTH_CHECK_SECONDS,
    )
    return app
