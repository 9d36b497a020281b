"""A primary and its replica behind one address that follows the primary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.redis_server import DURABLE, RedisServer
from tests.support.relay import Relay, relay
from tests.support.workers import eventually


class PrimaryAndReplica:
    """Two servers; `address` is the relay that leads to the primary."""

    def __init__(self, primary: RedisServer, replica: RedisServer, address: Relay) -> None:
        self.primary, self.replica, self.address = primary, replica, address

    def fail_over(self) -> None:
        """Swap the roles without a lost write. Open connections stay at the old primary."""
        self.wait_for_replica()
        command: Any = self.primary.client().execute_command
        command("FAILOVER")
        eventually(lambda: self.primary.client().role()[0] == "slave")
        eventually(lambda: self.replica.client().role()[0] == "master")
        self._follow()

    def _follow(self) -> None:
        self.primary, self.replica = self.replica, self.primary
        self.address.server = ("127.0.0.1", self.primary.port)

    def lose_primary(self) -> None:
        """Kill the primary and promote the replica."""
        self.wait_for_replica()
        self.primary.kill()
        self.replica.client().replicaof("NO", "ONE")
        self._follow()

    def wait_for_replica(self) -> None:
        """Return once the replica follows and has every write."""
        eventually(lambda: self.replica.client().info()["master_link_status"] == "up")
        eventually(lambda: self.primary.client().wait(1, 1000))


@contextmanager
def primary_and_replica(folder: Path) -> Iterator[PrimaryAndReplica]:
    """Start both, and kill them at the end of the block."""
    primary = RedisServer(folder / "one")
    primary.start()
    options = {**DURABLE, "replicaof": f"127.0.0.1 {primary.port}"}
    replica = RedisServer(folder / "two", options)
    try:
        replica.start()
        with relay(primary.url) as address:
            yield PrimaryAndReplica(primary, replica, address)
    finally:
        replica.kill()
        primary.kill()
