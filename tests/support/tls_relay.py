"""A TLS server in front of a Redis server, because the tests' own server is built without TLS.

It judges its clients: what it counts are connections and bytes that a client should not have sent.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.certificates import Authority, Certificate

#: The first byte of a TLS connection: https://www.rfc-editor.org/rfc/rfc8446#section-5.1
HANDSHAKE = b"\x16"


class TLSRelay:
    """Decrypts for a server on this machine.

    Args:
        port: Of the server.
        certificate: Presented to clients until `present`.
    """

    def __init__(self, port: int, certificate: Certificate, listener: socket.socket) -> None:
        self._server, self._listener = port, listener
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.port: int = listener.getsockname()[1]
        #: Connections that began without TLS; they are closed at once.
        self.plain = 0
        #: Connections that ended within the handshake.
        self.refused = 0
        #: Bytes that clients have sent since the last `present`, such as their password.
        self.received = 0
        self.present(certificate)

    def present(self, certificate: Certificate, clients_of: Authority | None = None) -> None:
        """Use another certificate, and cut all connections that have the one before.

        Args:
            clients_of: Clients must have a certificate of this authority; None asks for none.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        if clients_of:
            context.load_verify_locations(clients_of.file)
            context.verify_mode = ssl.CERT_REQUIRED
        with self._lock:
            self._context = context
            self.plain = self.refused = self.received = 0
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            first = connection.recv(1, socket.MSG_PEEK)
            if first != HANDSHAKE:
                self.plain += bool(first)
                return
            context = self._context
            try:
                client = context.wrap_socket(connection, server_side=True)
            except OSError:
                self.refused += 1
                return
            with client, socket.create_connection(("127.0.0.1", self._server)) as server:
                with self._lock:
                    if context is not self._context:
                        return
                    self._open.add(client)
                replies = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                replies.start()
                self._pass_on(client, server, context)

    def _pass_on(
        self, source: socket.socket, target: socket.socket, context: ssl.SSLContext | None = None
    ) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(2**16):
                if context is self._context:
                    self.received += len(data)
                target.sendall(data)
        for end in (source, target):
            self._open.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tls_relay(port: int, certificate: Certificate) -> Iterator[TLSRelay]:
    """Run a relay to the server on a port of this machine."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        relay = TLSRelay(port, certificate, listener)
        threading.Thread(target=relay.serve, daemon=True).start()
        yield relay
