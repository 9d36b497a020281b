"""The workers' side of Redis: every message is leased, none is lost, none runs twice on a blip.

A fetch takes the most urgent messages, one of each tenant in turn, as far as places are theirs to
have (lua/take.lua, places.py), and leases them in the same step. A thread renews the leases of the
process until the messages are acknowledged, whatever becomes of the connection (leases.py). A lease
that nobody has renewed for `visibility_timeout` seconds belonged to a dead worker: any other puts
its message back as the next of its tenant. A message that cannot be understood, or was delivered
`max_deliveries` times without an end, goes to the list `fleet:dead_letters` and its task fails.

Importing this module makes the broker URLs `fleetredis://` and `fleetrediss://` (TLS, verified
unless `broker_use_ssl` says otherwise) known. Workers set `broker_read_url` to one and
`worker_consumer` to `workers.runtime.transport:Consumer`; everybody else stays on plain `redis://`.
`broker_transport_options`, besides kombu's:

* visibility_timeout: seconds; a live worker renews six times in it.
* max_deliveries (5): a message given back by a worker that stops is not counted.
* idle_delay (0.02): seconds between two looks at empty queues, for what no bell rings for: what
  was put back, waits for a place that it may have, or comes where the server has no bell (bell.py).
* fetch_limit (16): the messages of one fetch; never more than the worker may still hold.
* affinity (""): a name that no other worker has: share the messages of the one queue that this
  worker consumes with its other workers by what their engines have cached (prefix_affinity.py).
"""

import atexit
import json
import logging
import math
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

from celery.exceptions import NotRegistered
from celery.signals import worker_shutdown
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from redis.exceptions import NoScriptError

from primarch_fleet import redis_support
from primarch_fleet.redis_support import LuaScript
from workers.runtime import prefix_affinity
from workers.runtime.fair_share import SlotReservation
from workers.runtime.fetch_timer import FetchTimer, wake_hub
from workers.runtime.leases import DEAD_LETTERS, DISCONNECTED, LEASES, Terms, Undeliverable
from workers.runtime.scripts import FETCH, FETCH_NEAR

logger = logging.getLogger(__name__)

#: Seconds between two lots of a worker's task events.
EVENTS_INTERVAL = 0.25
#: Connections that the threads of a process share for what they do to their leases.
LEASE_CONNECTIONS = 16
#: The process's own.
PLACES = SlotReservation()


class QoS(virtual.QoS):
    """Acknowledges through the leases of the process, which outlive the channel."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Nothing: the fetch has leased the message."""

    def can_consume(self) -> bool:
        """Whether the process may hold one more message, counted over reconnections."""
        return not self.prefetch_count or len(LEASES) < self.prefetch_count

    def ack(self, delivery_tag: str) -> None:
        """Done with the message, at the latest when Redis is back."""
        LEASES.ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop the message, or put it at the end of its queue as one more delivery."""
        (LEASES.requeue if requeue else LEASES.ack)(delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Nothing: a channel that closes gives nothing back, the end of the process does."""
        self._on_collect.cancel()  # type: ignore[attr-defined]


class Channel(kombu_redis.Channel):
    """Fetches by lua/fetch.lua or lua/fetch_near.lua in place of BRPOP."""

    QoS = QoS  # type: ignore[assignment]
    max_deliveries = 5
    idle_delay = 0.02
    fetch_limit = 16
    affinity = ""
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "max_deliveries",
        "idle_delay",
        "fetch_limit",
        "affinity",
    )

    # What this relies on and kombu does not publish.
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _q_for_pri: Callable[[str, int], str]
    _connparams: Callable[[], dict[str, Any]]
    _flush_brpop_reauth: Callable[[], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unleased: set[str] = set()  # queues whose consumer does not acknowledge
        self._sources: dict[str, str] = {}  # list -> queue
        self._asked: list[str] = []  # the tags of a fetch whose reply is still to come
        self._script_unknown = False  # the server does not know the script of the last fetch
        super().__init__(*args, **kwargs)
        self._fetch_timer = FetchTimer(self._connparams, self.idle_delay)

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume with leases, or without for a consumer that does not acknowledge."""
        if no_ack:
            self._unleased.add(queue)
        else:
            self._unleased.discard(queue)
            self._fetch_timer.hub = self.connection.hub
            self._start_leases()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming, and read out the answer under way: its messages go back at once."""
        result = super().basic_cancel(consumer_tag)
        if self._in_poll and not self.active_queues:
            with suppress(Empty):
                self._brpop_read()
        return result

    def close(self) -> None:
        """Give everything back."""
        self._fetch_timer.close()
        super().close()

    def _start_leases(self) -> None:
        prefix = self.global_keyprefix
        terms = Terms(
            prefix + self.unacked_key,
            prefix + self.unacked_index_key,
            prefix + DEAD_LETTERS,
            self.visibility_timeout,
            self.max_deliveries,
        )
        # Many threads acknowledge at once.
        client = redis_support.once_on_parameters(self._connparams(), LEASE_CONNECTIONS)
        LEASES.start(client, terms)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages; the poller calls this whenever no question is open."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or not self._fetch_timer.due:
            return
        held = LEASES.by_tenant()
        places = PLACES.arguments(self.qos.prefetch_count, held)
        room = int(places[0])
        if room < 1:
            return
        prefix = self.global_keyprefix
        self._sources = {
            prefix + self._q_for_pri(queue, step): queue
            for step in self.priority_steps
            for queue in queues
        }
        fetch = uuid.uuid4().hex
        self._asked = [f"{fetch}-{number}" for number in range(min(room, self.fetch_limit))]
        script, keys, arguments = self._question(queues, held.total())
        arguments = [*places, len(self._asked), *self._asked, *arguments]
        self._fetch_timer.on_fetch()
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        command = script.command(keys, arguments, by_text=self._script_unknown)
        self._script_unknown = False
        self._in_poll.send_command(*command)

    def _question(
        self, queues: list[str], held: int
    ) -> tuple[LuaScript, list[str], list[str | float]]:
        """The script that fetches from these queues, its keys and what it alone is told."""
        prefix = self.global_keyprefix
        keys = [prefix + self.unacked_key, prefix + self.unacked_index_key]
        if self.affinity and len(queues) == 1 and queues[0] not in self._unleased:
            keys += prefix_affinity.keys(queues[0], prefix)
            told = prefix_affinity.arguments(self.affinity, held)
            return FETCH_NEAR, [*keys, *self._sources], told
        leased = ["0" if queue in self._unleased else "1" for queue in self._sources.values()]
        return FETCH, [*keys, *self._sources], [*leased]

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the answer, one message by one. Raises Empty when there was none."""
        try:
            reply = self.client.connection.read_response()
        except NoScriptError:  # nothing was leased: fetch again at once, with the script's text
            self._asked, self._script_unknown = [], True
            self._fetch_timer.on_messages(self._sources, more=True)
            raise Empty from None
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll, tags = None, self._asked
            self._flush_brpop_reauth()
        self._asked = []
        if not reply:
            self._fetch_timer.on_empty(self._sources)
            raise Empty
        # Behind as much as was asked for there may be more.
        self._fetch_timer.on_messages(self._sources, more=len(reply) == 3 * len(tags))
        fields = iter(reply)
        fetched = [
            (tag, source.decode(), tenant.decode(errors="replace"), text.decode(errors="replace"))
            for tag, source, tenant, text in zip(tags, fields, fields, fields, strict=False)
        ]
        self._hand_out(fetched)
        return True

    def _hand_out(self, fetched: list[tuple[str, str, str, str]]) -> None:
        for tag, source, tenant, _ in fetched:  # all: the last waits for the first
            if self._sources[source] not in self._unleased:
                LEASES.hold(tag, tenant=tenant)
                PLACES.record_message(tenant)
        left = iter(fetched)
        try:
            for tag, source, _, text in left:
                self._deliver(tag, source, text)
        except BaseException:  # Redis is away or the worker exits
            LEASES.unread(*(tag for tag, *_ in left))
            raise

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection and self._asked:
            LEASES.unread(*self._asked)
            self._asked = []
        super()._on_connection_disconnect(connection)  # type: ignore[misc]

    def _deliver(self, tag: str, source: str, text: str) -> None:
        """Hand a message to its consumer; what blows up there is a dead letter.

        Celery would exit, and so would every worker that gets the message next.
        """
        queue = self._sources[source]
        self._queue_cycle.rotate(queue)
        if queue not in (self.connection._callbacks or ()):
            LEASES.unread(tag)  # the consumer was cancelled while the answer was under way
            return
        try:
            message = json.loads(text)
            message["properties"]["delivery_tag"] = tag
            self.connection._deliver(message, queue)
        except (*DISCONNECTED, OperationalError):
            LEASES.let_go(tag)
            raise
        except Undeliverable as problem:
            LEASES.bury(tag, text, source, problem)
        except Exception as exc:
            logger.exception("A message cannot be read", extra={"action": "message_unreadable"})
            LEASES.bury(tag, text, source, Undeliverable("malformed", exc))


class Poller(kombu_redis.MultiChannelPoller):
    """Looks again after the idle delay also where no hub turns: in `drain_events`."""

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Deliver what has come. Raises Empty when that is nothing."""
        super().get(callback, min(timeout or math.inf, Channel.idle_delay))


class Transport(kombu_redis.Transport):
    """Redis with leases: `fleetredis://`."""

    Channel = Channel
    #: The worker's, once it turns.
    hub: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """As kombu does, and wake the worker's hub often enough to look at empty queues."""
        super().register_with_event_loop(connection, loop)
        self.hub = loop
        options = connection.client.transport_options
        loop.call_repeatedly(options.get("idle_delay", Channel.idle_delay), wake_hub)


class TLSTransport(Transport):
    """Redis with leases over TLS: `fleetrediss://`."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not isinstance(client.ssl, dict):
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


class Consumer(CeleryConsumer):
    """Celery's consumer on leases: dead letters in place of dropped messages, acks at once."""

    hub: Any
    event_dispatcher: Any
    qos: Any
    _flush_events: Callable[[], None]

    def register_with_event_loop(self, hub: Any) -> None:
        """As Celery does, and send the tasks' events in lots, one every `EVENTS_INTERVAL`."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_INTERVAL, self._flush_events)

    def on_send_event_buffered(self) -> None:  # type: ignore[override]
        """Nothing, in place of waking the hub: the next lot has the event."""

    def shutdown(self) -> None:
        """Send the events of the tasks that have ended while the hub stood still."""
        self._flush_events()
        super().shutdown()

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Acknowledge in the calling thread: the hub stands still while a stopping worker drains.

        Then wake the hub of a worker that was full: it may fetch one more message.
        """
        was_full = 0 < self.qos.value <= len(LEASES)
        p(*args, **kwargs)
        if was_full:
            self.hub.call_soon(wake_hub)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """The body cannot be decoded."""
        raise Undeliverable("undecodable", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """The message is not a task."""
        raise Undeliverable("not_a_task", ValueError("No task is named"))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """This worker does not know the task."""
        raise Undeliverable("unknown_task", NotRegistered(str(exc)))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """The task is known, its message is refused."""
        raise Undeliverable("invalid_task", exc)


def leased(url: str) -> str:
    """A worker's `broker_read_url` for the broker at this `redis://` or `rediss://` URL."""
    return f"fleet{url}" if url.startswith(("redis://", "rediss://")) else url


TRANSPORT_ALIASES["fleetredis"] = "workers.runtime.transport:Transport"
TRANSPORT_ALIASES["fleetrediss"] = "workers.runtime.transport:TLSTransport"

worker_shutdown.connect(LEASES.return_all)
atexit.register(LEASES.return_all)  # a cold shutdown sends no signal
