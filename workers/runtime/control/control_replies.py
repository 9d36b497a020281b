"""Replies to `inspect` and `control`: they do not outlive an asker that dies before it reads them.

A worker stores a reply in the asker's own queue, which only the asker deletes.
"""

from __future__ import annotations

from typing import Any

from celery.app import control
from kombu import pidbox
from kombu.transport.redis import Channel

#: Seconds for which a reply is stored; askers wait for a few.
REPLY_TTL_SECONDS = 60


class Mailbox(pidbox.Mailbox):
    """kombu's mailbox, whose replies expire."""

    def _publish_reply(  # noqa: PLR0913, PLR0917 - kombu's signature
        self,
        reply: Any,
        exchange: Any,
        routing_key: str,
        ticket: str,
        channel: Any = None,
        producer: Any = None,
        **options: Any,
    ) -> None:
        super()._publish_reply(reply, exchange, routing_key, ticket, channel, producer, **options)
        if isinstance(channel, Channel):
            with channel.conn_or_acquire() as client:
                client.expire(f"{routing_key}.{exchange}", REPLY_TTL_SECONDS)


class Control(control.Control):
    """Celery's control commands, with this mailbox."""

    Mailbox = Mailbox
