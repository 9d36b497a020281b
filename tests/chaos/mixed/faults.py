"""The faults: what is done to the processes, to Redis and to the network.

A fault is one class and a row in FAULTS. `strike` returns when the fault is over, or at once where
only its effect lasts.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import redis

from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.network import Network
from tests.chaos.mixed.processes import Process, Supervisor
from tests.support.redis_server import RedisServer

#: How much more often a worker is struck than another process.
WORKER_WEIGHT = 3
#: Free memory of Redis while it is full, in bytes.
FREE_BYTES = 50_000


@dataclass
class Site:
    """Where faults strike."""

    supervisor: Supervisor
    server: RedisServer
    folder: Path
    journal: Journal
    numbers: random.Random
    network: Network
    #: Held by a fault of the network, and of Redis itself: there is one of each at a time.
    network_lock: threading.Lock = field(default_factory=threading.Lock)
    redis_lock: threading.Lock = field(default_factory=threading.Lock)

    def process(self) -> Process:
        """Choose a process that runs."""
        processes = self.supervisor.processes
        running = [one for one in processes if one.status is None] or processes
        weights = [WORKER_WEIGHT if one.role.is_worker else 1 for one in running]
        return self.numbers.choices(running, weights)[0]

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A client of the harness, straight to the server."""
        with redis.Redis(port=self.server.port, socket_timeout=5) as client:
            yield client


class Fault(ABC):
    """A kind of fault."""

    name: ClassVar[str]
    #: How often it is drawn, beside the others.
    weight: ClassVar[int] = 1
    #: Whether it strikes Redis itself.
    of_redis: ClassVar[bool] = False

    def alone(self, site: Site) -> AbstractContextManager[Any]:
        """Hold off the faults that must not strike at the same time."""
        return nullcontext()

    @abstractmethod
    def strike(self, site: Site) -> str:
        """Do it; return what it struck."""


class Kill(Fault):
    """SIGKILL of a process of any role."""

    name, weight = "SIGKILL of a process", 8

    def strike(self, site: Site) -> str:
        process = site.process()
        struck = process.key
        site.journal.write("killed", key=struck)
        process.send(signal.SIGKILL)
        return struck


class Terminate(Fault):
    """SIGTERM of a process of any role: it drains, and is started again."""

    name, weight = "SIGTERM of a process", 4

    def strike(self, site: Site) -> str:
        process = site.process()
        struck = process.key
        site.journal.write("terminated", key=struck)
        process.send(signal.SIGTERM)
        return struck


class Freeze(Fault):
    """SIGSTOP of a process for a moment, or for longer than its leases live, then SIGCONT."""

    name, weight = "SIGSTOP of a process, then SIGCONT", 5
    SECONDS = (0.5, 9.0)

    def strike(self, site: Site) -> str:
        process, seconds = site.process(), site.numbers.uniform(*self.SECONDS)
        struck = process.key
        site.journal.write("stopped", key=struck)
        process.send(signal.SIGSTOP)
        time.sleep(seconds)
        if process.key == struck:
            process.send(signal.SIGCONT)
            site.journal.write("continued", key=struck)
        return f"{struck} for {seconds:.1f} s"


class SetClock(Fault):
    """The wall clock of a process is minutes ahead or behind for a while."""

    name, weight = "wall clock of a process set", 3
    SECONDS = (2.0, 8.0)

    def strike(self, site: Site) -> str:
        process, seconds = site.process(), site.numbers.uniform(*self.SECONDS)
        skew = site.numbers.choice((-1, 1)) * site.numbers.uniform(5, 600)
        process.set_clock(skew)
        time.sleep(seconds)
        process.set_clock(0)
        return f"{process.name} by {skew:+.0f} s for {seconds:.1f} s"


class Cut(Fault):
    """Redis closes all connections of a type."""

    name, weight = "all connections cut (CLIENT KILL)", 4

    def strike(self, site: Site) -> str:
        kind = site.numbers.choice(("normal", "pubsub"))
        with site.client() as client:
            client.client_kill_filter(_type=kind, skipme=True)
        return kind


class CutNetwork(Fault):
    """The connections of half of the processes are cut, as by a load balancer."""

    name, weight = "connections cut by the network", 2

    def strike(self, site: Site) -> str:
        site.network.cut()
        return "second of each role"


class NetworkFault(Fault):
    """A fault of the network that lasts."""

    def alone(self, site: Site) -> AbstractContextManager[Any]:
        """Hold off the others of this kind."""
        return site.network_lock


class SilentNetwork(NetworkFault):
    """Nothing passes between half of the processes and Redis; their connections stay open."""

    name, weight = "network silent, connections open", 2
    SECONDS = (0.5, 6.0)

    def strike(self, site: Site) -> str:
        seconds = site.numbers.uniform(*self.SECONDS)
        site.network.silence(True)
        time.sleep(seconds)
        site.network.silence(False)
        return f"for {seconds:.1f} s"


class LostReplies(NetworkFault):
    """Redis executes the commands of half of the processes, and they get no replies."""

    name, weight = "replies of Redis lost", 2
    SECONDS = (0.1, 1.0)

    def strike(self, site: Site) -> str:
        seconds = site.numbers.uniform(*self.SECONDS)
        site.network.lose_replies(True)
        time.sleep(seconds)
        site.network.lose_replies(False)
        return f"for {seconds:.1f} s"


class RedisFault(Fault):
    """A fault of the server: there is one at a time."""

    of_redis = True

    def alone(self, site: Site) -> AbstractContextManager[Any]:
        """Hold off the others of this kind."""
        return site.redis_lock


class KillRedis(RedisFault):
    """SIGKILL of the server, and a new start from its files."""

    name, weight = "SIGKILL of Redis, then its start", 1

    def strike(self, site: Site) -> str:
        site.server.kill()
        time.sleep(site.numbers.uniform(0, 1))
        site.server.start()
        return "redis"


class FreezeRedis(RedisFault):
    """SIGSTOP of the server, then SIGCONT."""

    name, weight = "SIGSTOP of Redis, then SIGCONT", 1
    SECONDS = (0.5, 4.0)

    def strike(self, site: Site) -> str:
        seconds = site.numbers.uniform(*self.SECONDS)
        site.server.freeze()
        time.sleep(seconds)
        site.server.thaw()
        return f"for {seconds:.1f} s"


class RollBack(RedisFault):
    """Redis starts from what it had on disk two seconds before."""

    name, weight = "Redis rolled back by two seconds", 1
    SECONDS = 2.0

    def strike(self, site: Site) -> str:
        copy = site.folder / "earlier"
        before = time.monotonic()
        site.server.save_files(copy)
        time.sleep(self.SECONDS)
        site.server.roll_back(copy)
        site.journal.write("rolled_back", since=before)
        return f"{time.monotonic() - before:.1f} s ago"


class FillMemory(RedisFault):
    """Redis has no memory for a few seconds."""

    name, weight = "Redis out of memory (maxmemory)", 1
    SECONDS = (1.0, 4.0)

    def strike(self, site: Site) -> str:
        seconds = site.numbers.uniform(*self.SECONDS)
        with site.client() as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", used + FREE_BYTES)
            time.sleep(seconds)
            client.config_set("maxmemory", 0)
        return f"for {seconds:.1f} s"


FAULTS: tuple[type[Fault], ...] = (
    Kill,
    Terminate,
    Freeze,
    SetClock,
    Cut,
    CutNetwork,
    SilentNetwork,
    LostReplies,
    KillRedis,
    FreezeRedis,
    RollBack,
    FillMemory,
)


class Storm:
    """Strikes with random faults, several at a time."""

    #: Faults that strike at the same time at most.
    AT_ONCE = 6

    def __init__(self, site: Site, faults: tuple[type[Fault], ...], interval: float) -> None:
        self._site, self._faults, self._interval = site, [fault() for fault in faults], interval
        self._running = threading.BoundedSemaphore(self.AT_ONCE)
        #: Errors of the harness itself.
        self.errors: list[str] = []

    def rage(self, seconds: float, count: int) -> int:
        """Strike until the time or the number of faults is over; return how many struck."""
        deadline, struck = time.monotonic() + seconds, 0
        threads = []
        while time.monotonic() < deadline and struck < count:
            time.sleep(self._site.numbers.expovariate(1 / self._interval))
            self._running.acquire()
            fault = self._draw()
            thread = threading.Thread(target=self._strike, args=(fault,))
            thread.start()
            threads.append(thread)
            struck += 1
        for thread in threads:
            thread.join()
        return struck

    def _draw(self) -> Fault:
        free = [
            fault
            for fault in self._faults
            if not (fault.of_redis and self._site.redis_lock.locked())
        ]
        return self._site.numbers.choices(free, [fault.weight for fault in free])[0]

    def _strike(self, fault: Fault) -> None:
        journal = self._site.journal
        try:
            with fault.alone(self._site):
                started = time.monotonic()
                target = fault.strike(self._site)
                journal.write("fault", name=fault.name, target=target, started=started)
        except redis.RedisError as error:  # another fault has struck Redis first
            journal.write("missed", name=fault.name, error=type(error).__name__)
        except Exception as error:
            self.errors.append(f"{fault.name}: {error!r}")
        finally:
            self._running.release()
