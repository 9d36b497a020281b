"""Best-effort notification that something was pushed to one of the Redis lists of an idle worker.

On a connection with `CLIENT TRACKING`, the server sends one invalidation when a key changes that
the connection has read: https://valkey.io/topics/client-side-caching/. The producer need not know
of that, and the invalidation carries only the name of the key, however large the message.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import redis

from primarch_fleet import redis_support

logger = logging.getLogger(__name__)


class PushNotifier:
    """Calls back from the hub's thread when a list has a message; on a connection of its own.

    Best effort: a server or proxy may not support `CLIENT TRACKING` or may drop the connection.
    Callers must poll once it is `closed`, and call `check` now and then, which finds that out.

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
        #: True once a message came without a notification: there is no use in another connection.
        self.unreliable = False
        self._armed_lists: list[str] = []
        self._on_reply: deque[Callable[[int], None]] = deque()  # to each EXISTS in flight
        self._has_replied = True  # since the last check
        hub.add_reader(self._fileno, self._on_readable)

    def arm(self, lists: Iterable[str]) -> None:
        """Notify as soon as one of these Redis lists has a message, even if it has one already."""
        lists = [*lists]
        if lists == self._armed_lists or self.closed:
            return
        self._armed_lists = lists
        self._send_exists(self._on_armed)  # also makes the server track them

    def check(self) -> None:
        """Close if a notification is missing, or if no reply has come since the last check."""
        if self.closed or not self._armed_lists:
            return
        if not self._has_replied:
            self._lose(TimeoutError("no reply"))
            return
        self._has_replied = False
        if not self._on_reply:  # `arm` may have sent its own in this moment
            self._send_exists(self._on_checked)

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
            self._has_replied = True
            self._on_reply.popleft()(reply)
        else:
            self._notify()

    def _on_armed(self, existing: int) -> None:
        if existing:
            self._notify()

    def _on_checked(self, existing: int) -> None:
        # An invalidation would have come before this reply.
        if existing and self._armed_lists and not self._is_arming:
            self.unreliable = True
            self._lose(TimeoutError("a message came without its notification"))

    @property
    def _is_arming(self) -> bool:
        """Whether what arrives belongs to an earlier `arm`."""
        return self._on_armed in self._on_reply

    def _notify(self) -> None:
        if self._armed_lists and not self._is_arming:
            self._armed_lists = []
            self._on_push()

    def _send_exists(self, on_reply: Callable[[int], None]) -> None:
        self._on_reply.append(on_reply)
        try:
            self._connection.send_command("EXISTS", *self._armed_lists)
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        action = {"action": "push_notifications_lost"}
        logger.warning("Push notifications lost, polling only: %s", error, extra=action)
        self.close()
