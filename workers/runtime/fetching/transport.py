"""The workers' Redis transport: every message is leased, so that a killed worker loses none.

How a worker gets a message:

1. The fetch timer says that a fetch is due (fetch_timer.py). The channel sends one script to Redis
   (fetch_command.py, lua/fetch.lua). In one step, the script takes the most urgent messages, one of
   each tenant in turn, as far as the worker has slots for them (fair_share.py), and leases each:
   the message moves to a hash, under a tag that is unique to this delivery.
2. The reply arrives. The process tracks the leases (leases.py), and the consumer (consumer.py)
   receives the messages and gives them to the pool (pool.py).
3. A thread renews the leases of the process until their messages are acknowledged, whatever becomes
   of the connection. An acknowledgement deletes the message and its lease.

What can go wrong:

* A worker dies. Its leases expire after `visibility_timeout` seconds without a renewal; any other
  worker then puts each message back as the next one of its tenant.
* A connection breaks. The leases do not depend on it: running tasks go on, and nothing runs twice.
  What an unread reply may have leased goes back to the queue.
* A message cannot be understood, or was delivered `max_deliveries` times and never acknowledged. It
  goes to the list `fleet:dead_letters`, and its task fails (dead_letters.py).

Importing this module registers the broker URLs `fleetredis://` and `fleetrediss://` (TLS, verified
unless `broker_use_ssl` says otherwise). Workers set `broker_read_url` to such a URL, and
`worker_consumer` to `workers.runtime.consumer:Consumer`. Producers and all others use `redis://`.
`broker_transport_options`, besides those of kombu:

* visibility_timeout: seconds; a live worker renews its leases six times in it.
* max_deliveries (5): a message that a stopping worker gives back does not count.
* idle_delay (0.02): seconds between two fetches of a worker with free slots where no push
  notification (push_notifier.py) says when to fetch: while messages wait for a slot that their
  tenant may use or for another worker, and on a server without notifications.
* fetch_limit (16): messages that one fetch takes at most.
* affinity (""): a name that no other worker has. The workers of a queue then share its messages by
  what their engines have cached (prefix_affinity.py); the worker must consume only that queue.
"""

import json
import logging
import math
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any, NamedTuple

import redis
from celery.worker import state as worker_state
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from redis.exceptions import NoScriptError

from primarch_fleet import redis_support
from primarch_fleet.celery_redis import PrimaryChannel
from primarch_fleet.protocol import RESERVED
from primarch_fleet.redis_url import normalized
from workers.runtime.dead_letters import Undeliverable
from workers.runtime.fetching import fetch_command, prefix_affinity
from workers.runtime.fetching.fair_share import FreeSlots, SlotReservation
from workers.runtime.fetching.fetch_command import Affinity, FetchCommand, Fetched
from workers.runtime.fetching.fetch_timer import FetchTimer, wake_hub
from workers.runtime.fetching.rate_limits import RATE_LIMITS
from workers.runtime.leases.leases import LEASE_KEYS, LEASES, LeaseSettings
from workers.runtime.loop import task_greenlets
from workers.runtime.redis_errors import DISCONNECTED, REDIS_ERRORS
from workers.runtime.results.completions import COMPLETIONS

logger = logging.getLogger(__name__)

#: Connections that the threads of a process share to acknowledge messages and renew leases.
LEASE_CONNECTIONS = 16

#: The slots of this process. Like LEASES, they outlive a channel: a reconnection must not forget
#: which tenants are active.
SLOTS = SlotReservation()


class QoS(virtual.QoS):
    """Acknowledges through the leases of the process, which outlive the channel."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Do nothing: the fetch has leased the message."""

    def can_consume(self) -> bool:
        """Return whether the process may hold another message, counted across reconnections."""
        return not self.prefetch_count or len(LEASES) < self.prefetch_count

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge the message, at the latest once Redis can be reached again."""
        if task_greenlets.is_inside():
            COMPLETIONS.ack(delivery_tag)
        else:
            LEASES.ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop the message, or put it at the end of its tenant's, as one more delivery."""
        if requeue:
            LEASES.requeue(delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing: messages go back when the process ends, not when a channel closes."""
        self._on_collect.cancel()  # type: ignore[attr-defined]


class _Fetch(NamedTuple):
    """A fetch whose reply is not read yet."""

    #: A lease tag for each message that the reply may have.
    tags: list[str]
    #: Redis list -> queue, most urgent lists first.
    queues: dict[str, str]
    #: By `time.monotonic`.
    sent_at: float


class _Delivery(NamedTuple):
    """A message of a reply."""

    tag: str
    #: The queue of the list that it comes from.
    queue: str
    fetched: Fetched


class Channel(PrimaryChannel):
    """Fetches leased messages, where kombu's channel uses BRPOP.

    kombu's poller calls `_brpop_start` whenever no fetch is in flight, and `_brpop_read` when the
    reply can be read.
    """

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

    # Attributes of kombu's that it does not document.
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _q_for_pri: Callable[[str, int], str]
    _connparams: Callable[[], dict[str, Any]]
    _flush_brpop_reauth: Callable[[], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unleased_queues: set[str] = set()  # whose consumers do not acknowledge
        self._fetch: _Fetch | None = None  # the fetch in flight
        self._broadcast: dict[str, Any] = {}  # the last one: its channel, its data
        self._script_unknown = False  # the server does not know the script of the last fetch
        super().__init__(*args, **kwargs)
        max_quiet = prefix_affinity.LIMITS.patience_seconds / 2 if self.affinity else math.inf
        self._fetch_timer = FetchTimer(self._connparams, self.idle_delay, max_quiet)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue, unless the server is full: then a worker that connects again can drain it.

        The binding is there since the worker's start, and a broadcast needs a subscription only.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
        except redis.OutOfMemoryError as error:
            action = {"action": "queue_not_bound", "queue": queue}
            logger.warning("queue not bound: %s", error, extra=action)

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume with leases, or without for a consumer that does not acknowledge."""
        if no_ack:
            self._unleased_queues.add(queue)
        else:
            self._unleased_queues.discard(queue)
            self._fetch_timer.hub = self.connection.hub
            self._start_leases()
        self._fetch_timer.poll()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming. Wait for the fetch in flight, whose messages go back at once."""
        queues = list(self.active_queues)
        result = super().basic_cancel(consumer_tag)
        if self.active_queues:
            return result
        if self._in_poll:
            with suppress(Empty):
                self._brpop_read()
        if self.affinity:  # no message waits for this worker any more
            for queue in queues:
                _, _, workers = prefix_affinity.keys(queue)
                self.client.hdel(workers, self.affinity)
        return result

    def close(self) -> None:
        """Close all connections."""
        self._fetch_timer.close()
        super().close()

    def _start_leases(self) -> None:
        settings = LeaseSettings(self.visibility_timeout, self.max_deliveries)
        # Many threads acknowledge at once.
        client = redis_support.once_on_parameters(self._connparams(), LEASE_CONNECTIONS)
        LEASES.start(client, settings)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a fetch, if one is due and the worker has a free slot."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or not self._fetch_timer.due:
            return
        slots = SLOTS.free_slots(self.qos.prefetch_count, LEASES.count_by_tenant())
        if slots.free < 1:
            return
        fetch_id = uuid.uuid4().hex
        fetch = _Fetch(
            tags=[f"{fetch_id}-{n}" for n in range(min(slots.free, self.fetch_limit))],
            queues={
                self._q_for_pri(queue, step): queue
                for step in self.priority_steps
                for queue in queues
            },
            sent_at=time.monotonic(),
        )
        command = self._command(fetch, queues, slots)
        script, keys, args = command.within_rates(RATE_LIMITS.allowances())
        text_or_hash = script.command(keys, args, by_text=self._script_unknown)
        self._script_unknown = False
        self._fetch_timer.on_fetch()
        self._fetch = fetch
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self._in_poll.send_command(*text_or_hash)

    def _command(self, fetch: _Fetch, queues: list[str], slots: FreeSlots) -> FetchCommand:
        if self.affinity and len(queues) == 1 and queues[0] not in self._unleased_queues:
            affinity = Affinity(
                prefix_affinity.keys(queues[0]),
                worker=self.affinity,
                load=slots.held.total(),
                limits=prefix_affinity.LIMITS,
            )
            lists = [*fetch.queues]
            return fetch_command.fetch_near(LEASE_KEYS, lists, slots, fetch.tags, affinity)
        leased = {
            source: queue not in self._unleased_queues for source, queue in fetch.queues.items()
        }
        return fetch_command.fetch(LEASE_KEYS, leased, slots, fetch.tags)

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the messages of the fetch in flight. Raises Empty if there are none."""
        fetch: Any = self._fetch
        try:
            reply = self.client.connection.read_response()
        except NoScriptError:  # the script did not run: fetch again at once, with its text
            self._script_unknown = True
            self._fetch_timer.on_messages(fetch.queues, more=True)
            raise Empty from None
        except self.connection_errors:
            self.client.connection.disconnect()  # abandons the tags of the fetch
            raise
        finally:
            self._fetch = self._in_poll = None
            self._flush_brpop_reauth()
        messages, stay, paused = fetch_command.read_reply(reply)
        lists = [source for source, queue in fetch.queues.items() if queue not in paused]
        if not messages:
            self._fetch_timer.on_empty(lists, stay=stay, paused=bool(paused))
            raise Empty
        deliveries = [
            _Delivery(tag, fetch.queues[fetched.source], fetched)
            for tag, fetched in zip(fetch.tags, messages, strict=False)
        ]
        # A fetch that took as many as it could may have left more.
        more = len(deliveries) == len(fetch.tags)
        self._fetch_timer.on_messages(lists, more=more, stay=stay, paused=bool(paused))
        self._deliver_all(deliveries, fetch.sent_at)
        return True

    def _handle_message(self, client: Any, reply: Any) -> dict[str, Any]:
        self._broadcast = super()._handle_message(client, reply)  # type: ignore[misc]
        return self._broadcast

    def _receive_one(self, client: Any) -> bool:
        """Deliver a broadcast: a control command or an event; keep a bad one as a dead letter."""
        try:
            return bool(super()._receive_one(client))
        except REDIS_ERRORS:
            raise
        except Empty:
            problem: Exception = ValueError("no JSON")
        except Exception as exc:
            problem = exc
        channel, data = (bytes(self._broadcast[part]) for part in ("channel", "data"))
        LEASES.dead_broadcast(
            channel.decode(errors="replace"), data.decode(errors="replace"), problem
        )
        return False

    def _deliver_all(self, deliveries: list[_Delivery], fetched_at: float) -> None:
        # Track all leases first: the last message may wait long for those before it.
        for tag, queue, fetched in deliveries:
            if queue not in self._unleased_queues:
                tenant, task_id = fetched.tenant, fetched.task_id
                LEASES.track(tag, tenant=tenant, task_id=task_id, fetched_at=fetched_at)
                SLOTS.record_message(tenant)
        remaining = iter(deliveries)
        try:
            for delivery in remaining:
                self._deliver(delivery)
        except BaseException:  # Redis cannot be reached, or the worker exits
            LEASES.abandon(*(delivery.tag for delivery in remaining))
            raise

    def _deliver(self, delivery: _Delivery) -> None:
        """Give a message to its consumer; on an error there, make it a dead letter.

        Otherwise Celery would exit, and so would every worker that the message is redelivered to.
        """
        tag, queue, fetched = delivery
        self._queue_cycle.rotate(queue)
        if queue not in (self.connection._callbacks or ()):
            LEASES.abandon(tag)  # the consumer was cancelled while the fetch was in flight
            return
        try:
            message = json.loads(fetched.text)
            message["properties"]["delivery_tag"] = tag
            message["properties"][RESERVED] = fetched.reserved  # whatever the producer says
            if fetched.is_cancelled:  # Celery drops the message of a revoked task
                worker_state.revoked.add(fetched.task_id)
            self.connection._deliver(message, queue)
        except (*DISCONNECTED, OperationalError):
            LEASES.forget(tag)
            raise
        except Undeliverable as problem:
            LEASES.dead_letter(tag, problem)
        except Exception as exc:
            logger.exception("A message cannot be read", extra={"action": "message_malformed"})
            LEASES.dead_letter(tag, Undeliverable("malformed", exc))

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection and self._fetch:
            LEASES.abandon(*self._fetch.tags)
            self._fetch = None
        super()._on_connection_disconnect(connection)  # type: ignore[misc]


class Poller(kombu_redis.MultiChannelPoller):
    """Also fetches every idle delay where no hub runs: in `drain_events`."""

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Deliver the messages that have arrived. Raises Empty if there are none."""
        super().get(callback, min(timeout or math.inf, Channel.idle_delay))


class Transport(kombu_redis.Transport):
    """Redis with leases: `fleetredis://`."""

    Channel = Channel
    #: The event loop of the worker, once it runs.
    hub: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Do as kombu does, and wake the hub every idle delay, so that it fetches."""
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


def leased_url(url: str) -> str:
    """Return a worker's `broker_read_url`. Raises ConfigError."""
    return f"fleet{normalized(url)}"


TRANSPORT_ALIASES["fleetredis"] = "workers.runtime.fetching.transport:Transport"
TRANSPORT_ALIASES["fleetrediss"] = "workers.runtime.fetching.transport:TLSTransport"
