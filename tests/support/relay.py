"""A TCP relay to a Redis server that loses replies, and leads to another server when told so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes commands on and replies back, until a test says otherwise."""

    def __init__(self, server: tuple[str, int], listener: socket.socket) -> None:
        #: Where new connections lead; open ones stay where they are.
        self.server, self._listener = server, listener
        #: The address of the relay.
        self.url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        #: While it is set, commands are swallowed; the connections stay open.
        self.silent = threading.Event()
        #: Set when a command has been swallowed.
        self.has_swallowed = threading.Event()
        self._command, self._commands_to_pass, self._replies_to_lose = b"", 0, 0
        #: Called when a reply is lost, before the client notices.
        self.on_loss: Callable[[], object] = lambda: None

    def lose_replies(self, command: bytes = b"", times: int = 1, after: int = 0) -> None:
        """Close the connection after the server has executed the command, so many times.

        Args:
            command: A part of the commands that count; all count by default.
            after: Commands that get their replies before.
        """
        self._command, self._commands_to_pass, self._replies_to_lose = command, after, times

    @property
    def all_lost(self) -> bool:
        """True if every reply that should be lost was lost."""
        return self._replies_to_lose == 0

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        loses_reply = threading.Event()
        with suppress(OSError), client, socket.create_connection(self.server) as server:
            ends = (server, client, loses_reply)
            threading.Thread(target=self._relay_replies, args=ends, daemon=True).start()
            while data := client.recv(2**20):
                if self.silent.is_set():
                    self.has_swallowed.set()
                    continue
                if self._replies_to_lose and self._command in data:
                    if self._commands_to_pass == 0:
                        loses_reply.set()
                        self._replies_to_lose -= 1
                    self._commands_to_pass = max(self._commands_to_pass - 1, 0)
                server.sendall(data)

    def _relay_replies(
        self, server: socket.socket, client: socket.socket, loses_reply: threading.Event
    ) -> None:
        with suppress(OSError):
            while reply := server.recv(2**20):
                if loses_reply.is_set():
                    self.on_loss()
                    break
                client.sendall(reply)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """Run a relay to the server at a URL."""
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Relay((host, int(port)), listener)
        threading.Thread(target=running.serve, daemon=True).start()
        yield running
