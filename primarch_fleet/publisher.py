"""The way of messages to Redis: what they may cost is reserved, and they are sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis
from celery import Celery

from primarch_fleet.budgets import Ledger, Reservation, ReservationRequest
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.encoder import MAX_MEMORY_FRACTION, EncodedMessage, MessageEncoder, redis_full
from primarch_fleet.errors import BudgetExceeded, FleetBusy
from primarch_fleet.outgoing import OutgoingMessage
from primarch_fleet.redis_support import LuaScript

#: Bytes of messages that one script sends, unless the first alone is larger: Redis does nothing
#: else meanwhile.
MAX_PUSH_BYTES = 2**20

_LUA = Path(__file__).with_name("lua")
_SEND = LuaScript.load(_LUA / "push.lua", _LUA / "send.lua")


class _TenantReservation(NamedTuple):
    """What is to be reserved for a tenant whose spending is counted."""

    tenant_id: str
    limits: Limits
    orders: list[ReservationRequest]


class Publisher:
    """Sends messages to one Redis. Safe to use from any thread.

    Args:
        app: Writes the messages.
        ledger: Reserves, through the client.
        client: With `decode_responses`, and without retries: what got no answer may have been sent.
    """

    def __init__(self, app: Celery, ledger: Ledger, client: redis.Redis) -> None:
        self._pen = MessageEncoder(app)
        self._ledger = ledger
        self._redis = client

    def publish(
        self, messages: Sequence[OutgoingMessage], catalogue: Catalogue
    ) -> list[OutgoingMessage]:
        """Reserve what messages may cost and send them, on another lane if they must be.

        Messages of one tenant that no policy may move are sent in the step that reserves: a
        producer that dies leaves both or none. Larger lots follow in steps of STEP bytes, once
        everything is reserved.

        Returns them as they were sent. Raises BudgetExceeded, TenantLimited, or LaneFull for a
        Redis that is almost out of memory, with nothing reserved and nothing sent; or
        redis.RedisError: if the connection broke, they may have been sent.
        """
        lots = list(_lots(messages, catalogue))
        if len(lots) == 1 and _fit_together(messages):
            self._ledger.reserve(*lots[0], self._pen.encode(one.options for one in messages))
            return list(messages)
        with self._reserved(lots) as held:
            sent = [_as_held(one, held) for one in messages]
            self._push(self._pen.encode(one.options for one in sent))
        return sent

    @contextmanager
    def _reserved(self, lots: Iterable[_TenantReservation]) -> Iterator[dict[str, Reservation]]:
        """What tasks hold; given back when one is refused, or cannot be sent."""
        held: dict[str, Reservation] = {}
        new: list[tuple[str, str]] = []
        try:
            for lot in lots:
                granted = self._ledger.reserve(*lot)
                held |= {one.task_id: one for one in granted}
                new += [(lot.tenant_id, one.task_id) for one in granted if one.is_new]
            yield held
        except (BudgetExceeded, FleetBusy):
            for tenant, task_id in new:
                self._ledger.refund(tenant, task_id)
            raise

    def _push(self, letters: Iterable[EncodedMessage]) -> None:
        """Only before the first of them is it asked whether Redis has room: all go, or none."""
        share: float | str = MAX_MEMORY_FRACTION
        for step in _steps(letters):
            lists, texts = zip(*step, strict=True)
            percent = _SEND.run(self._redis, lists, [share, *texts])
            if percent is not None:
                raise redis_full(percent)
            share = ""


def _lots(
    messages: Iterable[OutgoingMessage], catalogue: Catalogue
) -> Iterator[_TenantReservation]:
    by_tenant: defaultdict[str, list[ReservationRequest]] = defaultdict(list)
    for message in messages:
        by_tenant[message.request.tenant_id].append(message.reservation)
    for tenant_id, orders in by_tenant.items():
        if limits := catalogue.limits(tenant_id):
            yield _TenantReservation(tenant_id, limits, orders)


def _fit_together(messages: Iterable[OutgoingMessage]) -> bool:
    """Whether they are sure to be sent as they are, and small enough for one step."""
    return sum(one.size_bytes for one in messages) <= MAX_PUSH_BYTES and not any(
        one.fallback for one in messages
    )


def _as_held(message: OutgoingMessage, held: dict[str, Reservation]) -> OutgoingMessage:
    mine = held.get(message.ticket.id)
    return message.fallback if message.fallback and mine and mine.is_fallback else message


def _steps(letters: Iterable[EncodedMessage]) -> Iterator[list[EncodedMessage]]:
    """Letters in their order, in lots of STEP bytes at most, or of one letter."""
    lot: list[EncodedMessage] = []
    size = 0
    for letter in letters:
        if lot and size + len(letter.text) > MAX_PUSH_BYTES:
            yield lot
            lot, size = [], 0
        lot.append(letter)
        size += len(letter.text)
    if lot:
        yield lot
