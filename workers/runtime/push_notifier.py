"""The bell: an idle worker hears at once that something was pushed to its queues.

A connection on which `CLIENT TRACKING` is on is told, once, when a key changes that it has read:
https://valkey.io/topics/client-side-caching/. Whoever pushed it need not know of that, and only the
name of the key comes, however large the message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import redis

logger = logging.getLogger(__name__)

#: Seconds that the server may take to answer.
TIMEOUT = 5.0


class PushNotifier:
    """Rings in a hub, on a connection of its own. For the hub's thread.

    It can fall silent: the server, or what stands before it, may not do this or close the
    connection. So nobody relies on it to be called; it spares the wait until the next look.

    Args:
        parameters: Of the connection, as redis.ConnectionPool takes them.
        hub: kombu's.
        ring: Called when something is there, once for each call of `listen`.

    Raises redis.RedisError or OSError when the server cannot be reached or does not do this.
    """

    def __init__(self, parameters: dict[str, Any], hub: Any, ring: Callable[[], None]) -> None:
        parameters = parameters | {
            "protocol": 3,
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "socket_keepalive": True,
        }
        self._hub, self._ring = hub, ring
        self._connection: Any
        self._connection = redis.ConnectionPool(**parameters).get_connection()
        try:
            self._connection.send_command("CLIENT", "TRACKING", "ON")
            self._connection.read_response()
        except BaseException:
            self._connection.disconnect()
            raise
        self._file = self._connection._sock.fileno()
        #: Whether it will never ring again.
        self.closed = False
        self._lists: list[str] = []  # that it is to ring for
        self._asked = 0  # answers that are still to come
        hub.add_reader(self._file, self._hear)

    def arm(self, lists: Iterable[str]) -> None:
        """Ring as soon as one of these Redis lists has something; it may have by now."""
        lists = [*lists]
        if lists != self._lists and not self.closed:
            self._lists, self._asked = lists, self._asked + 1
            self._attempt(lambda: self._connection.send_command("EXISTS", *lists))

    def close(self) -> None:
        """Ring no more, and give the connection back."""
        if not self.closed:
            self.closed = True
            self._hub.remove(self._file)
            self._connection.disconnect()

    def _hear(self) -> None:
        self._attempt(self._read)

    def _read(self) -> None:
        # One answer may have come together with the next.
        while not self.closed and self._connection.can_read(0):
            answer = self._connection.read_response(push_request=True)
            self._asked -= isinstance(answer, int)
            # Before the last answer, a change is one of another time.
            if self._lists and not self._asked and answer != 0:
                self._lists = []
                self._ring()

    def _attempt(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except (redis.RedisError, OSError) as error:
            logger.warning("The bell is silent: %s", error, extra={"action": "bell_lost"})
            self.close()
