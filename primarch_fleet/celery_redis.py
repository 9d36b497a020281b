"""Celery's and kombu's Redis clients on connections that notice a failover (primary_connection.py).

A producer's process may have other Celery apps, so its fleet client has a transport of its own,
under the scheme `primaryredis://` or `primaryrediss://`. The fleet's own processes, Flower and beat
among them, let kombu's transport use these connections.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, cast

import redis
from celery.backends.redis import RedisBackend
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from primarch_fleet.primary_connection import NotPrimary, primary_class
from primarch_fleet.queues import purge
from primarch_fleet.redis_url import normalized

# Not in celery-types.
_CeleryResultConsumer: Any = cast(Any, RedisBackend).ResultConsumer


#: Seconds after which a waiting thread looks around, as in Celery.
_MAX_DRAIN_SECONDS = 1.0


class _ResultConsumer(_CeleryResultConsumer):  # type: ignore[misc]
    """Celery's consumer of results, which stays closed, and whose timeouts are exact."""

    def drain_events_until(
        self,
        p: Any,
        timeout: float | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[None]:
        """Wait until `p` is ready. Celery rounds the timeout up to whole seconds.

        Raises:
            TimeoutError: `p` was not ready in time.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not p.ready:
            seconds = min(end - time.monotonic(), _MAX_DRAIN_SECONDS)
            if seconds <= 0:
                raise TimeoutError
            waits = self.drainer.drain_events_until(
                p, timeout=seconds, interval=seconds, on_interval=on_interval
            )
            with suppress(TimeoutError):
                for _ in islice(waits, 1):
                    yield

    def stop(self) -> None:
        super().stop()
        # Else a result that Python collects later unsubscribes, and so connects again.
        self._pubsub = None


class PrimaryBackend(RedisBackend):
    """Celery's Redis result backend."""

    ResultConsumer: Any = _ResultConsumer
    #: As for `primary_class`: whether Celery's policy of retries holds for a full server too.
    waits_for_memory = False
    # Not in celery-types.
    connparams: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kind = self.connparams.get("connection_class", redis.Connection)
        self.connparams["connection_class"] = primary_class(
            kind, waits_for_memory=self.waits_for_memory
        )


class PrimaryChannel(kombu_redis.Channel):
    """kombu's Redis channel."""

    connection_class = primary_class(redis.Connection)
    connection_class_ssl = primary_class(redis.SSLConnection)
    conn_or_acquire: Any

    def _receive_one(self, client: Any) -> Any:
        """Deliver a broadcast. Raises NotPrimary if the server has refused writes meanwhile.

        redis-py would connect again here, and then wait for what this channel has not subscribed.
        """
        if client.connection is not None and client.connection.is_outdated:
            client.connection.disconnect()
            raise NotPrimary("Redis has refused writes on an older connection")
        return super()._receive_one(client)  # type: ignore[misc]

    def _purge(self, queue: str) -> int:
        """Drop the messages of a queue, also those that workers have sorted by tenant."""
        with self.conn_or_acquire() as client:
            return purge(client, queue)


class PatientChannel(PrimaryChannel):
    """kombu's Redis channel of a worker: it publishes later what a full server refuses.

    Retries, links and chords belong to requests that were accepted.
    """

    connection_class = primary_class(redis.Connection, waits_for_memory=True)
    connection_class_ssl = primary_class(redis.SSLConnection, waits_for_memory=True)
    connection: Any

    def basic_publish(self, *args: Any, **kwargs: Any) -> Any:
        """Publish a message. Raises redis.ConnectionError on a closed channel.

        kombu publishes on such a channel if the connection is lost while it declares the queue. It
        repeats what fails with this error, on a new channel.
        """
        if self.connection is None:
            raise redis.ConnectionError("the channel is closed")
        return super().basic_publish(*args, **kwargs)


class PrimaryTransport(kombu_redis.Transport):
    """kombu's Redis transport."""

    Channel = PrimaryChannel


def broker_url(url: str) -> str:
    """Return the `broker_url` of a producer. Raises ConfigError."""
    # Normalized: kombu uses TLS for a scheme of our own only if the URL has options of TLS.
    return f"primary{normalized(url)}"


def use_in_this_process() -> None:
    """Let kombu's transports for `redis://` and `rediss://` use a patient channel."""
    kombu_redis.Transport.Channel = PatientChannel


TRANSPORT_ALIASES["primaryredis"] = TRANSPORT_ALIASES["primaryrediss"] = (
    f"{__name__}:{PrimaryTransport.__name__}"
)
