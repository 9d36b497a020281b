"""What idle workers cost Redis: `python -m tests.bench.idle`.

One worker of each lane as shipped, one after the other, on a Valkey of its own, without requests.
Counted are the commands of clients, with MONITOR, not those inside of scripts, and the bytes that
the server receives. Then as many clients as `--workers` says repeat the commands of the realtime
worker at the times at which it sent them, and the server's CPU time is that with them less that of
the same clients in silence.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis

from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.connections import close_pools
from tests.support.redis_server import redis_server

WORKERS = {
    "realtime": "workers.realtime.app",
    "local": "workers.local.app",
    "batch": "scheduler.app",
}
#: Seconds after its start in which a worker does what it does once.
SETTLE_SECONDS = 15.0
#: A line of MONITOR: the time, who sent the command, and the command; and one word of that.
LINE, WORD = re.compile(rb"\+([\d.]+) \[\d+ (\S+)\] (.*)"), re.compile(rb'"((?:[^"\\]|\\.)*)"')


class Command(NamedTuple):
    """A command of a client, and when it was sent, in seconds from the start of the recording."""

    at_seconds: float
    words: list[bytes]

    def encode(self) -> bytes:
        """Return the command as the protocol has it."""
        words = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in self.words)
        return b"*%d\r\n%b" % (len(self.words), words)


def main() -> None:
    """Print the commands of each worker, and what many of them cost."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=100, help="default: %(default)s")
    options = parser.parse_args()
    seconds: float = options.seconds
    for lane, app in WORKERS.items():
        with tempfile.TemporaryDirectory() as folder, running(app, Path(folder)) as url:
            commands, received_bytes = recorded(url, seconds)
            counts = Counter(command.words[0].decode().upper() for command in commands)
            most = ", ".join(
                f"{name} {count / seconds:.2f}" for name, count in counts.most_common(4)
            )
            print(
                f"{lane}: {len(commands) / seconds:.2f} commands a second of "
                f"{received_bytes / max(1, len(commands)):.0f} bytes: {most}",
                flush=True,
            )
            if lane == "realtime":
                to_repeat = commands
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as valkey:
        silent, busy = (
            asyncio.run(cpu_share(valkey.url, one, options.workers, seconds))
            for one in ([], to_repeat)
        )
    print(
        f"{options.workers} workers: {100 * (busy - silent):.2f} % of a core of the server "
        f"(with them {100 * busy:.2f} %, in silence {100 * silent:.2f} %)"
    )


@contextmanager
def running(app: str, folder: Path) -> Iterator[str]:
    """Run a worker during the block; the URL of its Redis."""
    simulator_log, log = folder / "simulator.log", folder / "worker.log"
    with (
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator"], simulator_log),
    ):
        provider = wait_for("listening on", simulator_log).split()[-1]
        env = {
            "FLEET_REDIS_URL": valkey.url,
            "FLEET_DATA_DIR": str(folder),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": provider,
        }
        with process(["celery", "-A", app, "worker", "-n", "idle@bench"], log, **env):
            wait_for_worker(valkey.url, log)
            time.sleep(SETTLE_SECONDS)
            yield valkey.url
        close_pools(valkey.port)  # the next server may get the same port


def recorded(url: str, seconds: float) -> tuple[list[Command], int]:
    """Return the commands that the server gets in so many seconds, and their bytes."""
    return asyncio.run(_recorded(url, seconds))


async def _recorded(url: str, seconds: float) -> tuple[list[Command], int]:
    commands: list[Command] = []
    with redis.Redis.from_url(url, decode_responses=True) as client:
        before, started = _stat(client, "total_net_input_bytes"), time.time()
        reader, writer = await _connect(url)
        writer.write(b"MONITOR\r\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for line in reader:
                    found = LINE.match(line)
                    if found is not None and found[2] != b"lua":
                        words = [_unescaped(word) for word in WORD.findall(found[3])]
                        commands.append(Command(float(found[1]) - started, words))
        writer.close()
        received_bytes = _stat(client, "total_net_input_bytes") - before
    return commands, int(received_bytes)


async def cpu_share(url: str, commands: list[Command], clients: int, seconds: float) -> float:
    """Return the CPU time of a server per second, while clients repeat commands.

    The clients start one after another, within the time of the recording.
    """
    connections = [await _connect(url) for _ in range(clients)]
    with redis.Redis.from_url(url, decode_responses=True) as client:
        before, started = _cpu_seconds(client), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, (reader, writer) in enumerate(connections):
                shift = seconds * number / clients
                group.create_task(_repeat(reader, writer, commands, shift, seconds))
        share = (_cpu_seconds(client) - before) / (time.monotonic() - started)
    for _, writer in connections:
        writer.close()
    return share


async def _repeat(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    commands: list[Command],
    shift_seconds: float,
    seconds: float,
) -> None:
    """Send recorded commands once; those before the shift come last. Replies are dropped."""
    started = time.monotonic()
    dropping = asyncio.create_task(_drop(reader))
    ordered = sorted(
        ((command.at_seconds - shift_seconds) % seconds, command.encode()) for command in commands
    )
    for at_seconds, text in ordered:
        await asyncio.sleep(max(0.0, started + at_seconds - time.monotonic()))
        writer.write(text)
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
    dropping.cancel()


async def _drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


def _unescaped(word: bytes) -> bytes:
    return word.decode("unicode_escape").encode("latin-1")


def _stat(client: Any, name: str) -> float:
    return float(client.info("stats")[name])


def _cpu_seconds(client: Any) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


if __name__ == "__main__":
    main()
