"""Publish messages: reserve what they may cost, and push them to Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import Celery
from redis.exceptions import NoPermissionError

from primarch_fleet import budgets
from primarch_fleet.budgets import Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.encoder import EncodedMessage, MessageEncoder
from primarch_fleet.errors import BudgetExceeded, FleetBusy, LaneFull
from primarch_fleet.outgoing import OutgoingMessage, conflict_at
from primarch_fleet.parts import in_parts, in_parts_by_bytes
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.reservations import Reservation, ReservationRequest

logger = logging.getLogger(__name__)

#: Bytes of messages that one script pushes, unless the first message alone is larger: Redis does
#: nothing else meanwhile.
MAX_PUSH_BYTES = 2**20
#: Messages that are encoded before the first of them is pushed: a submit may have 100,000.
ENCODED_AT_ONCE = 500
#: Fraction of Redis's memory, if that is limited, above which nothing is pushed. The rest is for
#: the results of waiting requests, which cannot be stored once the memory is full.
MAX_MEMORY_FRACTION = 0.95
#: Seconds after which a producer may retry when Redis is almost full.
REDIS_FULL_RETRY_SECONDS = 5.0
#: Seconds for which an idempotency key is remembered: longer than the longest batch.
IDEMPOTENCY_TTL_SECONDS = 3 * 86_400

_LUA = Path(__file__).with_name("lua") / "publish"
_PUSH = LuaScript.load(_LUA / "queue_lists.lua", _LUA / "push.lua")
_RESERVE_AND_PUSH = LuaScript.load(
    *budgets.RESERVATION_LUA, _LUA / "queue_lists.lua", _LUA / "reserve_and_push.lua"
)


class PushStatus(StrEnum):
    """Why the scripts of lua/publish pushed nothing, the first element of their replies."""

    REDIS_FULL = "redis_full"
    REPEATED = "repeated"


#: Messages that one script pushes.
_Step = list[tuple[OutgoingMessage, EncodedMessage]]


class _TenantReservation(NamedTuple):
    """What to reserve for one tenant whose spending is counted."""

    tenant_id: str
    limits: Limits
    requests: list[ReservationRequest]


class _KeyConflict(Exception):
    """The idempotency key of a message belongs to another request."""

    def __init__(self, message: OutgoingMessage) -> None:
        super().__init__()
        self.message = message

    def place(self, messages: Iterable[OutgoingMessage]) -> int:
        """Return the index of the message, or of its fallback, among those to publish."""
        own = (self.message.ticket.id, self.message.fingerprint)
        return next(i for i, one in enumerate(messages) if (one.ticket.id, one.fingerprint) == own)


class Publisher:
    """Publishes messages to one Redis. Safe to use from any thread.

    Args:
        app: Encodes the messages.
        ledger: The tenants' ledgers at the same Redis.
        client: With `decode_responses`, and without retries: a push without an answer may have been
            executed.
    """

    def __init__(self, app: Celery, ledger: Ledger, client: redis.Redis) -> None:
        self._encoder = MessageEncoder(app)
        self._ledger = ledger
        self._redis = client
        self._may_reserve = True

    @cached_property
    def _max_memory(self) -> float | str:
        """The share of the memory that the scripts check; "" where the user may not read it."""
        try:
            self._redis.info("memory")
        except redis.ResponseError as error:
            logger.warning(
                "the memory of Redis is not checked before a submit: %s; submits are refused once "
                "it is full. To refuse them from %.0f%% on, permit the command INFO",
                error,
                100 * MAX_MEMORY_FRACTION,
                extra={"action": "memory_check_skipped"},
            )
            return ""
        return MAX_MEMORY_FRACTION

    def publish(self, messages: Sequence[OutgoingMessage], path: str = "") -> list[OutgoingMessage]:
        """Reserve what messages may cost and push them, or their fallbacks if a budget requires it.

        A message is pushed together with its idempotency key, and only if that is new: whenever a
        producer dies or a connection breaks, a repeated submit pushes exactly what is missing.

        Messages without a fallback, for one limited tenant, are reserved and pushed in one atomic
        step: if the producer dies, both have happened or neither. Other messages are pushed after
        everything is reserved, in steps of MAX_PUSH_BYTES. For a user who may not touch the ledgers
        nothing is reserved: the worker that takes a message reserves for it, or refuses it.

        Args:
            messages: The messages.
            path: What precedes the name of a wrong field in an error, with the message's place.

        Returns:
            The messages that were pushed, in the same order.

        Raises:
            BudgetExceeded: Nothing was reserved or pushed.
            IdempotencyConflict: A key belongs to another request. Nothing was reserved or pushed,
                unless both requests were submitted at the same moment.
            TenantLimited: Nothing was reserved or pushed.
            LaneFull: Redis is out of memory, or almost. Nothing was reserved or pushed.
            redis.RedisError: If the connection broke, messages may have been pushed; also if Redis
                ran out of memory after the first step.
        """
        try:
            return self._publish_permitted(messages)
        except _KeyConflict as conflict:
            raise conflict_at(path.format(conflict.place(messages))) from None

    def _publish_permitted(self, messages: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """Publish, without reservations for a user who may not touch the ledgers."""
        try:
            return self._publish(messages)
        except NoPermissionError as error:
            if not self._may_reserve:
                raise
            self._may_reserve = False
            action = {"action": "reserved_by_workers"}
            logger.info("budgets are checked by the workers only: %s", error, extra=action)
            return self._publish(messages)

    def _publish(self, messages: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        messages = self._new(messages)
        reservations = _by_tenant(messages) if self._may_reserve else []
        if len(reservations) == 1 and _fit_one_step(messages):
            with refused_if_full():
                is_pushed = self._reserve_and_push(reservations[0], messages)
            return messages if is_pushed else self._publish(messages)
        with self._reserved(reservations) as granted:
            final = [_granted_message(message, granted) for message in messages]
            self._push(final)
        return final

    def _new(self, messages: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """Leave out messages whose idempotency key was pushed before, or comes twice.

        Raises:
            _KeyConflict: A key belongs to another request.
        """
        firsts = {one.idempotency_key: one for one in reversed(messages)}
        firsts.pop(None, None)
        pushed = self._fingerprints([str(key) for key in firsts])
        for message in messages:
            key, own = message.idempotency_key, message.fingerprint
            if key is not None and {own, firsts[key].fingerprint, pushed.get(key) or own} != {own}:
                raise _KeyConflict(message)
        return [
            one
            for one in messages
            if one.idempotency_key not in pushed and firsts.get(one.idempotency_key, one) is one
        ]

    def _fingerprints(self, keys: Sequence[str]) -> dict[str, str]:
        """The stored fingerprint of each idempotency key that was pushed.

        It is empty if an older version has pushed the key, or has made the user, who then may not
        read keys.
        """
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.get(key)
        try:
            replies = pipe.execute() if keys else []
        except NoPermissionError:
            for key in keys:
                pipe.exists(key)
            replies = ["" if exists else None for exists in pipe.execute()]
        return {key: reply for key, reply in zip(keys, replies, strict=True) if reply is not None}

    def _reserve_and_push(
        self, reservation: _TenantReservation, messages: Sequence[OutgoingMessage]
    ) -> bool:
        """Reserve and push in one step; False if a message was pushed before."""
        tenant_id, limits, requests = reservation
        keys, args = _push_arguments(self._encoded(messages))
        reply = _RESERVE_AND_PUSH.run(
            self._redis,
            [*budgets.ledger_keys(tenant_id), *keys],
            [*budgets.reserve_args(tenant_id, limits, requests), self._max_memory, *args],
        )
        if _is_repeated(reply):
            return False
        budgets.read_reservations(tenant_id, limits, requests, reply)
        return True

    def _encoded(self, messages: Sequence[OutgoingMessage]) -> _Step:
        return list(zip(messages, self._encoder.encode(messages), strict=True))

    @contextmanager
    def _reserved(
        self, reservations: Iterable[_TenantReservation]
    ) -> Iterator[dict[str, Reservation]]:
        """Reserve for all tenants, by task id. Refunds if one is refused or nothing is pushed."""
        granted: dict[str, Reservation] = {}
        new: list[tuple[str, str]] = []
        try:
            for tenant_id, limits, requests in reservations:
                for reservation in self._ledger.reserve(tenant_id, limits, requests):
                    granted[reservation.task_id] = reservation
                    if reservation.is_new:
                        new.append((tenant_id, reservation.task_id))
            yield granted
        except (BudgetExceeded, FleetBusy):
            for tenant_id, task_id in new:
                self._ledger.refund(tenant_id, task_id)
            raise

    def _push(self, messages: Sequence[OutgoingMessage]) -> None:
        """Push messages; the memory is checked before the first step only, so that all are sent."""
        steps = self._steps(messages)
        repeated: list[OutgoingMessage] = []
        for step in islice(steps, 1):
            with refused_if_full():
                repeated += self._push_step(step, self._max_memory)
        for step in steps:
            repeated += self._push_step(step, "")
        self._new(repeated)  # after all others are pushed, and reserved for

    def _steps(self, messages: Sequence[OutgoingMessage]) -> Iterator[_Step]:
        """Encode messages, in steps of at most MAX_PUSH_BYTES or of one message."""
        encoded = chain.from_iterable(
            self._encoded(part) for part in in_parts(messages, ENCODED_AT_ONCE)
        )
        return in_parts_by_bytes(((one, len(one[1].text)) for one in encoded), MAX_PUSH_BYTES)

    def _push_step(self, step: _Step, max_memory: float | str) -> list[OutgoingMessage]:
        """Push a step without the messages that another submit pushes meanwhile; return these."""
        keys, args = _push_arguments(step)
        if not _is_repeated(_PUSH.run(self._redis, keys, [max_memory, *args])):
            return []
        pushed = self._fingerprints(keys[: len(keys) - len(step)])
        new = [one for one in step if one[0].idempotency_key not in pushed]
        repeated = [message for message, _ in step if message.idempotency_key in pushed]
        return repeated + (self._push_step(new, max_memory) if new else [])


def _by_tenant(messages: Iterable[OutgoingMessage]) -> list[_TenantReservation]:
    reservations: dict[str, _TenantReservation] = {}
    for message in messages:
        if message.limits is not None:
            tenant_id, limits = message.tenant_id, message.limits
            if tenant_id not in reservations:
                reservations[tenant_id] = _TenantReservation(tenant_id, limits, [])
            reservations[tenant_id].requests.append(message.reservation)
    return list(reservations.values())


def _fit_one_step(messages: Iterable[OutgoingMessage]) -> bool:
    """Whether messages have no fallback and are small enough for one script."""
    size_bytes = sum(len(message.argument) for message in messages)
    return size_bytes <= MAX_PUSH_BYTES and not any(message.fallback for message in messages)


def _granted_message(message: OutgoingMessage, granted: dict[str, Reservation]) -> OutgoingMessage:
    reservation = granted.get(message.ticket.id)
    if message.fallback is not None and reservation is not None and reservation.is_fallback:
        return message.fallback
    return message


def _push_arguments(step: _Step) -> tuple[list[str], list[Any]]:
    """Return the last KEYS and ARGV of a script that pushes messages: lua/publish."""
    once = [message for message, _ in step if message.idempotency_key]
    keys = [*(str(one.idempotency_key) for one in once), *(encoded.list_key for _, encoded in step)]
    texts = [encoded.text for _, encoded in step]
    ids = json.dumps([message.ticket.id for message, _ in step])
    fingerprints = json.dumps([message.fingerprint for message in once])
    return keys, [*texts, ids, IDEMPOTENCY_TTL_SECONDS, fingerprints]


def _is_repeated(reply: list[Any] | None) -> bool:
    """Whether a script pushed nothing because a message was pushed before. Raises LaneFull."""
    status, *details = reply or [None]
    if status == PushStatus.REDIS_FULL:
        raise _redis_full(*details)
    return bool(status == PushStatus.REPEATED)


@contextmanager
def refused_if_full() -> Iterator[None]:
    """Convert the refusal of a Redis that is out of memory to LaneFull."""
    try:
        yield
    except redis.OutOfMemoryError:
        raise _redis_full(100) from None


def _redis_full(percent: int) -> LaneFull:
    return LaneFull.until(f"redis: {percent}% of its memory is used", REDIS_FULL_RETRY_SECONDS)
