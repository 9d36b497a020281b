"""The kinds of requests of a chaos run, each with what its producer does and writes down.

intent     before anything is sent: marker, kind, lane
sent       the broker has the message, or Redis said that it had it before: marker, task id
unsure     the broker did not answer: the message may have been sent, or not
cancelled  `cancel` has returned: True or False, or null after an error
stream     a reader has seen the end of a stream: whether it ended, and whether it was whole
outcome    a result has arrived: task id, "ok" or the name of the error
"""

from __future__ import annotations

import json
import random
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery, chord
from celery.canvas import Signature
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from primarch_fleet import CompletionRequest, Fleet, Ticket, errors
from primarch_fleet.contract import LANES, Lane
from primarch_fleet.protocol import TENANT, task_name
from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.settings import HOSTED, OWN, TENANTS

#: Where all follow-ups of tasks wait: no worker takes them, so the end can count them.
FOLLOW_UPS = "chaos.followups"
#: Seconds for which a producer waits for a result before it asks again.
WAIT_SECONDS = 20.0
#: How often a producer asks again.
WAITS = 3
RETRY_SECONDS = 0.3
QUEUES: dict[Lane, str] = {"realtime": "realtime", "local": f"local.{OWN}", "batch": "batch"}
WORDS = "the quick brown fox jumps over the lazy dog"


@dataclass(frozen=True)
class Order:
    """A request, or several in one canvas, of one kind."""

    marker: str
    kind: str
    lane: Lane
    tenant: str
    #: Until a cancel, or as a countdown.
    seconds: float

    def request(self, marker: str = "", **fields: Any) -> CompletionRequest:
        """The request that carries the marker, or another marker."""
        return CompletionRequest(
            model=OWN if self.lane == "local" else HOSTED,
            messages=[{"role": "user", "content": f"<{marker or self.marker}> {WORDS}"}],
            lane=self.lane,
            tenant_id=self.tenant,
            max_completion_tokens=60,
            **fields,
        )


class Requester:
    """Sends orders, waits for their results and writes the journal. Safe to use from any thread."""

    def __init__(self, fleet: Fleet, plain: Celery, journal: Journal) -> None:
        self._fleet, self._plain, self._journal = fleet, plain, journal

    def run(self, order: Order) -> None:
        """Do what the kind of an order says, until it has its result or waited long enough."""
        self._journal.write("intent", marker=order.marker, kind=order.kind, lane=order.lane)
        KINDS[order.kind].run(self, order)

    def keyed(self, order: Order) -> None:
        """A request with an idempotency key is sent again whenever its result does not come."""
        request = order.request(idempotency_key=order.marker)
        for _ in range(WAITS):
            ticket = self._submit(order, request)
            if ticket and self._outcome(order.marker, ticket.id):
                return

    def unkeyed(self, order: Order) -> None:
        """A request without a key is sent once."""
        if ticket := self._submit(order, order.request()):
            self._wait(order.marker, ticket.id)

    def twice(self, order: Order) -> None:
        """A request is submitted twice under its key."""
        request = order.request(idempotency_key=order.marker)
        first, second = self._submit(order, request), self._submit(order, request)
        if first and second:
            assert first.id == second.id
            self.keyed(order)

    def stream(self, order: Order) -> None:
        """A stream is read to its end, and compared with the result."""
        request = order.request(stream=True, idempotency_key=order.marker)
        if not (ticket := self._submit(order, request)):
            return
        text, ended = "", False
        try:
            for chunk in self._fleet.stream(ticket, timeout=WAIT_SECONDS):
                text += chunk.text
            ended = True
        except errors.FleetError as error:
            text = type(error).__name__
        self._wait(order.marker, ticket.id, streamed=(ended, text))

    def cancel(self, order: Order) -> None:
        """A request is cancelled a moment after its submit."""
        if not (ticket := self._submit(order, order.request())):
            return
        time.sleep(order.seconds)
        value: bool | None
        try:
            value = self._fleet.cancel(ticket, WAIT_SECONDS)
        except (errors.FleetError, RedisError, OperationalError):
            value = None
        self._journal.write("cancelled", marker=order.marker, id=ticket.id, value=value)
        self._wait(order.marker, ticket.id)

    def plain(self, order: Order) -> None:
        """A plain Celery producer sends a task."""
        self._send(order, self._signature(order))

    def countdown(self, order: Order) -> None:
        """A plain Celery producer sends a task for later.

        At once while its clock is wrong: Celery counts by that clock, so the task would wait for
        minutes (docs/limits.md).
        """
        task = self._signature(order)
        if abs(self._journal.clock_error_seconds()) < 1:
            task.set(countdown=order.seconds)
        self._send(order, task)

    def link(self, order: Order) -> None:
        """A task has a link and an errback."""
        task = self._signature(order)
        task.link(self._follow_up("linked", order))
        task.link_error(self._follow_up("failed", order))
        self._send(order, task)

    def chain(self, order: Order) -> None:
        """A task has a successor."""
        self._send(order, self._signature(order), self._follow_up("chained", order))

    def chord(self, order: Order) -> None:
        """Three tasks, one on each lane, have a common successor."""
        parts = [
            Order(f"{order.marker}-{lane}", order.kind, lane, order.tenant, 0) for lane in QUEUES
        ]
        header = [self._signature(part) for part in parts]
        canvas = chord(header, self._follow_up("joined", order), app=self._plain)
        ids = {
            part.marker: task.options["task_id"] for part, task in zip(parts, header, strict=True)
        }
        if self._publish(order, canvas):
            for marker, task_id in ids.items():
                self._journal.write("sent", marker=marker, id=task_id)
            for marker, task_id in ids.items():
                self._wait(marker, task_id)

    def _signature(self, order: Order) -> Signature[Any]:
        task: Signature[Any] = self._plain.signature(
            task_name(order.lane, "complete"),
            args=[order.request().to_wire()],
            queue=QUEUES[order.lane],
            headers={TENANT: order.tenant},
            retry=False,
        )
        task.set(task_id=self._task_id(order))
        return task

    def _task_id(self, order: Order) -> str:
        return f"chaos-{order.marker}"

    def _follow_up(self, name: str, order: Order) -> Signature[Any]:
        return self._plain.signature(
            f"chaos.{name}", args=[order.marker], queue=FOLLOW_UPS, immutable=True
        )

    def _send(self, order: Order, task: Signature[Any], then: Signature[Any] | None = None) -> None:
        task_id = self._task_id(order)
        if self._publish(order, task | then if then else task):
            self._journal.write("sent", marker=order.marker, id=task_id)
            self._wait(order.marker, task_id)

    def _publish(self, order: Order, canvas: Signature[Any]) -> bool:
        try:
            canvas.apply_async()
        except (OperationalError, RedisError, OSError) as error:
            self._journal.write("unsure", marker=order.marker, error=type(error).__name__)
            return False
        return True

    def _submit(self, order: Order, request: CompletionRequest) -> Ticket | None:
        """Submit until the broker has it. None if that is not known, and the request has no key."""
        while True:
            try:
                ticket = self._fleet.submit(request)
            except (errors.FleetBusy, errors.NoCatalogue):
                time.sleep(RETRY_SECONDS)
            except errors.FleetUnavailable as error:
                if request.idempotency_key is None:
                    self._journal.write("unsure", marker=order.marker, error=str(error)[:80])
                    return None
                time.sleep(RETRY_SECONDS)
            else:
                self._journal.write("sent", marker=order.marker, id=ticket.id)
                return ticket

    def _wait(self, marker: str, task_id: str, streamed: tuple[bool, str] | None = None) -> None:
        for _ in range(WAITS):
            if self._outcome(marker, task_id, streamed):
                return

    def _outcome(self, marker: str, task_id: str, streamed: tuple[bool, str] | None = None) -> bool:
        """Write down the outcome; False if there is none yet."""
        fields: dict[str, Any] = {"marker": marker, "id": task_id}
        try:
            completion = self._fleet.result(task_id, WAIT_SECONDS)
        except errors.RequestFailed as error:
            self._journal.write("outcome", **fields, outcome=type(error).__name__, text=str(error))
            return True
        except (errors.FleetError, RedisError, OperationalError):
            time.sleep(RETRY_SECONDS)
            return False
        self._journal.write("outcome", **fields, outcome="ok")
        if streamed is not None:
            ended, text = streamed
            whole = ended and text == completion.text
            self._journal.write("stream", marker=marker, ended=ended, whole=whole, text=text[:40])
        return True


@dataclass(frozen=True)
class Kind:
    """How often requests of a kind are sent, on which lanes, and what is done with them."""

    weight: int
    run: Callable[[Requester, Order], None]
    lanes: tuple[Lane, ...] = LANES


KINDS = {
    "keyed": Kind(6, Requester.keyed),
    "unkeyed": Kind(6, Requester.unkeyed),
    "twice": Kind(2, Requester.twice),
    "stream": Kind(4, Requester.stream, ("realtime", "local")),
    "cancel": Kind(6, Requester.cancel),
    "plain": Kind(4, Requester.plain),
    "countdown": Kind(3, Requester.countdown),
    "link": Kind(3, Requester.link),
    "chain": Kind(3, Requester.chain),
    "chord": Kind(2, Requester.chord),
}


def draw(numbers: random.Random, kinds: Mapping[str, Kind], marker: str) -> Order:
    """Draw an order."""
    (kind,) = numbers.choices(list(kinds), [kind.weight for kind in kinds.values()])
    lane, tenant = numbers.choice(kinds[kind].lanes), numbers.choice(TENANTS)
    longest = 8.0 if kind == "countdown" else 2.0
    return Order(marker, kind, lane, tenant, numbers.uniform(0, longest))


def follow_ups(client: redis.Redis) -> Counter[tuple[str, str]]:
    """Count the follow-ups that wait, by their name and their marker."""
    counts: Counter[tuple[str, str]] = Counter()
    for key in client.scan_iter(f"{FOLLOW_UPS}*", count=1000):
        texts: Any = client.lrange(key, 0, -1)
        for text in texts:
            message = json.loads(text)
            ((marker,), *_) = json.loads(b64decode(message["body"]))
            counts[message["headers"]["task"], marker] += 1
    return counts
