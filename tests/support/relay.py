"""A TCP relay to a Redis server that loses replies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes commands on and replies back, until a test says otherwise."""

    def __init__(self, server: tuple[str, int], listener: socket.socket) -> None:
        self._server, self._listener = server, listener
        #: The address of the relay.
        self.url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        #: While it is set, commands are swallowed; the connections stay open.
        self.silent = threading.Event()
        self._command, self._replies_to_lose = b"", 0

    def lose_replies(self, command: bytes, times: int = 1) -> None:
        """Close the connection after the server has executed the command, so many times."""
        self._command, self._replies_to_lose = command, times

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
        with suppress(OSError), client, socket.create_connection(self._server) as server:
            while data := client.recv(2**20):
                if self.silent.is_set():
                    continue
                server.sendall(data)
                reply = server.recv(2**20)
                if self._replies_to_lose and self._command in data:
                    self._replies_to_lose -= 1
                    return
                client.sendall(reply)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """Run a relay to the server at a URL."""
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Relay((host, int(port)), listener)
        threading.Thread(target=running.serve, daemon=True).start()
        yield running
