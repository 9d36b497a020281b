"""Best-effort notification that something was pushed to one of the Redis lists of an idle worker.

On a connection with `CLIENT TRACKING`, the server sends one invalidation when a key changes that
the connection has read: https://valkey.io/topics/client-side-caching/. The producer need not know
of that, and the invalidation carries only the name of the key, however large the message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import redis

from primarch_fleet import redis_support

logger = logging.getLogger(__name__)


class PushNotifier:
    """Calls back from the hub's thread when a list has a message; on a connection of its own.

    Best effort: a server or proxy may not support `CLIENT TRACKING` or may drop the connection.
    Callers must poll as well; a notification only spares the wait until the next poll.

    Args:
        parameters: Of the connection, as redis.ConnectionPool takes them.
        hub: kombu's event loop, which reads the connection.
        on_push: Called once for each `arm`, when a list has a message.

    Raises:
        redis.RedisError: The server cannot be reached or does not support tracking; no connection
            is left open. OSError likewise.
    """

    def __init__(self, parameters: dict[str, Any], hub: Any, on_push: Callable[[], None]) -> None:
        self._hub, self._on_push = hub, on_push
        self._connection = redis_support.push_connection(parameters)
        try:
            self._connection.send_command("CLIENT", "TRACKING", "ON")
            self._connection.read_response()
        except BaseException:
            self._connection.disconnect()
            raise
        self._fileno = self._connection._sock.fileno()
        #: True once no notification can come any more.
        self.closed = False
        self._armed_lists: list[str] = []
        self._pending_replies = 0  # to EXISTS
        hub.add_reader(self._fileno, self._on_readable)

    def arm(self, lists: Iterable[str]) -> None:
        """Notify as soon as one of these Redis lists has a message, even if it has one already."""
        lists = [*lists]
        if lists == self._armed_lists or self.closed:
            return
        self._armed_lists = lists
        self._pending_replies += 1
        try:
            self._connection.send_command("EXISTS", *lists)  # also makes the server track them
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    def close(self) -> None:
        """Stop notifying and close the connection."""
        if not self.closed:
            self.closed = True
            self._hub.remove(self._fileno)
            self._connection.disconnect()

    def _on_readable(self) -> None:
        try:
            # One read may have buffered several replies.
            while not self.closed and self._connection.can_read(0):
                self._handle(self._connection.read_response(push_request=True))
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    def _handle(self, reply: Any) -> None:
        """Handle the reply to an EXISTS, which is a number, or an invalidation."""
        if isinstance(reply, int):
            self._pending_replies -= 1
        if self._pending_replies:
            return  # this reply belongs to an earlier `arm`
        if self._armed_lists and reply != 0:
            self._armed_lists = []
            self._on_push()

    def _lose(self, error: Exception) -> None:
        action = {"action": "push_notifications_lost"}
        logger.warning("Push notifications lost, polling only: %s", error, extra=action)
        self.close()
