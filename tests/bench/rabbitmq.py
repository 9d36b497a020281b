"""What RabbitMQ as the broker would change: `python -m tests.bench.rabbitmq --url amqp://...`.

Needs a RabbitMQ server of its own, 3.10 or newer: the queue of the benchmark is emptied, and the
queues of Celery's delayed delivery stay. Redis, here a Valkey server that this module starts, holds
budgets, idempotency keys and results on both sides; only the messages differ:

* "redis": the fleet's own script, which reserves and pushes in one step;
* "rabbitmq": the same reservation, then a publish to a quorum queue that waits for the server's
  confirmation, then the idempotency key.

Both sides alternate or follow each other in one run. The worker of the RabbitMQ side is stock
Celery with threads, that of the Redis side a realtime worker with the simulated provider.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import redis
from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Connection, Exchange, Queue

from config.fleet import fleet_config
from primarch_fleet import CompletionRequest, Fleet, celery_app
from primarch_fleet.budgets import Ledger, ledger_keys
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.outgoing import OutgoingMessage
from primarch_fleet.publisher import IDEMPOTENCY_TTL_SECONDS, Publisher
from primarch_fleet.queues import priority_lists
from primarch_fleet.tracing import TracedRequest
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.bench.rabbitmq_app import QUEUE, TASK_SECONDS, stock_app
from tests.support.redis_server import redis_server

TENANT, KEY_PREFIX = "bench", "fleet:idempotency:"
#: Messages of the busy tenant, and slots of a worker.
BURST, SLOTS = 250, 10
#: Tasks of each priority; tasks that are revoked; seconds of a countdown.
PRIORITY_TASKS, REVOKED, COUNTDOWN_SECONDS = 20, 10, 3
#: Seconds that a producer runs before it is killed: the first and the last.
KILL_AFTER = (0.02, 0.1)
#: Seconds for a result.
TIMEOUT_SECONDS = 120

_fork = multiprocessing.get_context("fork")


def limited_catalogue() -> Catalogue:
    limits = Limits(daily_budget_nanousd=10**18)
    return fleet_config().catalogue().model_copy(update={"tenants": {TENANT: limits}})


def message(catalogue: Catalogue) -> OutgoingMessage:
    fields = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "How are you?"}],
        "lane": "realtime",
        "tenant_id": TENANT,
        "idempotency_key": str(uuid.uuid4()),
    }
    return OutgoingMessage.build(
        TracedRequest(CompletionRequest.parse(fields)), catalogue, datetime.now(UTC)
    )


class Storage(Protocol):
    """A way to store a submit: its reservation, its message and its idempotency key."""

    def __init__(self, url: str, broker: str) -> None: ...

    def store(self, message: OutgoingMessage) -> None: ...

    def waiting(self) -> set[str]:
        """Take all messages; return the ids of their tasks."""


class OneStep:
    """The fleet's own publisher."""

    def __init__(self, url: str, broker: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        app = celery_app.producer_app(url, 5.0)
        self._publisher = Publisher(app, Ledger(self._redis), self._redis)

    def store(self, message: OutgoingMessage) -> None:
        self._publisher.publish([message])

    def waiting(self) -> set[str]:
        names = priority_lists("realtime")
        texts = [text for name in names for text in self._redis.lrange(name, 0, -1)]
        self._redis.delete(*names)
        return {json.loads(text)["headers"]["id"] for text in texts}


class TwoSystems:
    """Redis for the reservation and the key, RabbitMQ for the message."""

    def __init__(self, url: str, broker: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self._ledger = Ledger(self._redis)
        self._app = stock_app(broker)
        self._connection = Connection(broker, transport_options={"confirm_publish": True})
        self._producer = self._connection.Producer()
        self.channel: Any = self._producer.channel
        queue: Any = self._app.amqp.queues[QUEUE]
        queue(self.channel).declare()

    def store(self, message: OutgoingMessage) -> None:
        assert message.limits is not None
        if self._redis.exists(message.idempotency_key):
            return
        self._ledger.reserve(TENANT, message.limits, [message.reservation])
        self._app.send_task(
            **message.options.arguments() | {"queue": QUEUE},
            args=[json.loads(message.argument)],
            task_id=message.ticket.id,
            producer=self._producer,
        )
        self._redis.set(message.idempotency_key, message.ticket.id, ex=IDEMPOTENCY_TTL_SECONDS)

    def waiting(self) -> set[str]:
        return set(self.take_all())

    def take_all(self) -> list[str]:
        taken = []
        while found := self.channel.basic_get(QUEUE, no_ack=True):
            taken.append(found.headers["id"])
        return taken


SIDES: dict[str, type[Storage]] = {"redis": OneStep, "rabbitmq": TwoSystems}


def milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def p50_p99(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms"


def compare_submits(url: str, broker: str, submits: int, fsync: str) -> None:
    """Store submits on both sides, in turn, while Redis writes to its disk as `fsync` says."""
    with redis.Redis.from_url(url) as store:
        store.config_set("appendfsync", fsync)
    catalogue = limited_catalogue()
    sides = {name: side(url, broker) for name, side in SIDES.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(submits):
        for name, side in sides.items():
            new = message(catalogue)
            times[name].append(milliseconds(lambda side=side, new=new: side.store(new)))  # type: ignore[misc]
    for name, side in sides.items():
        side.waiting()
        figures = p50_p99(times[name][submits // 10 :])
        print(f"submit, appendfsync {fsync}, {name}: {figures}", flush=True)


def submit_until_killed(side: type[Storage], url: str, broker: str, ready: Any) -> None:
    catalogue, storage = limited_catalogue(), side(url, broker)
    storage.store(message(catalogue))
    ready.set()
    while True:
        storage.store(message(catalogue))


def kill_producers(name: str, url: str, broker: str, kills: int) -> None:
    """Kill producers at random; count what each left half done."""
    with redis.Redis.from_url(url, decode_responses=True) as store:
        store.flushdb()
        for kill in range(kills):
            ready = _fork.Event()
            child = _fork.Process(
                target=submit_until_killed, args=(SIDES[name], url, broker, ready), daemon=True
            )
            child.start()
            ready.wait(TIMEOUT_SECONDS)
            time.sleep(KILL_AFTER[0] + (KILL_AFTER[1] - KILL_AFTER[0]) * kill / kills)
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
        waiting = SIDES[name](url, broker).waiting()
        reserved = set(store.hkeys(ledger_keys(TENANT)[1]))
        keys = {key.removeprefix(KEY_PREFIX) for key in store.scan_iter(f"{KEY_PREFIX}*")}
        store.flushdb()
    print(
        f"{kills} producers killed, {name}: {len(waiting)} messages; reserved without a message "
        f"{len(reserved - waiting)}; message without its idempotency key {len(waiting - keys)}; "
        f"idempotency key without a message {len(keys - waiting)}",
        flush=True,
    )


def check_server(broker: str) -> None:
    with Connection(broker) as connection:
        connection.connect()
        version = connection.connection.server_properties["version"]
        print(f"RabbitMQ {version}")
        arguments = {"x-queue-type": "quorum", "x-max-priority": 10}
        queue = Queue("primarch_bench_priority", Exchange(""), queue_arguments=arguments)
        try:
            queue.bind(connection.channel()).queue_declare()
            print("a quorum queue with x-max-priority: declared")
        except AMQPError as error:
            print(f"a quorum queue with x-max-priority: {error}")


def find_and_remove(url: str, broker: str) -> None:
    """Remove a message from the middle of the queue, which only reading it can find."""
    catalogue, side = limited_catalogue(), TwoSystems(url, broker)
    messages = [message(catalogue) for _ in range(BURST)]
    for one in messages:
        side.store(one)
    victim = messages[BURST // 2].ticket.id

    def remove() -> None:
        while (found := side.channel.basic_get(QUEUE)).headers["id"] != victim:
            passed_over.append(found.delivery_tag)
        side.channel.basic_ack(found.delivery_tag)
        for tag in passed_over:
            side.channel.basic_reject(tag, requeue=True)

    passed_over: list[int] = []
    elapsed = milliseconds(remove)
    time.sleep(1)  # the server returns messages to the queue after the call
    place = side.take_all().index(messages[0].ticket.id)
    read = len(passed_over) + 1
    print(f"cancel 1 of {BURST} waiting, rabbitmq: {read} messages read, {elapsed:.1f} ms;", end="")
    print(f" the first message now waits behind {place} others", flush=True)


def cancel_waiting(url: str, broker: str) -> list[str]:
    """Cancel waiting messages of the fleet; return their ids."""
    catalogue, side = limited_catalogue(), OneStep(url, broker)
    messages = [message(catalogue) for _ in range(BURST)]
    for one in messages:
        side.store(one)
    ids = [one.ticket.id for one in messages[:: BURST // REVOKED]]
    with Fleet(url) as fleet:
        times = [milliseconds(lambda id_=id_: fleet.cancel(id_)) for id_ in ids]  # type: ignore[misc]
    print(f"cancel 1 of {BURST} waiting, redis: p50 {statistics.median(times):.1f} ms", flush=True)
    return ids


def started(results: Iterable[Any]) -> list[float]:
    return [result.get(TIMEOUT_SECONDS) for result in results]


def stock_worker(app: Celery, url: str, broker: str, folder: Path, rounds: int) -> None:
    """Tasks of stock Celery: priorities, revoke, countdown, and a burst."""
    log = folder / "stock"

    def send(priority: int = 0, countdown: float | None = None) -> Any:
        return app.send_task("bench.work", priority=priority, countdown=countdown)

    usual, urgent = ([send(priority) for _ in range(PRIORITY_TASKS)] for priority in (0, 9))
    revoked = [send() for _ in range(REVOKED)]
    app.control.revoke([result.id for result in revoked])
    command = ["celery", "-A", "tests.bench.rabbitmq_app", "worker", "-P", "threads", "-l", "INFO"]
    env = {"BENCH_BROKER": broker, "BENCH_BACKEND": url}
    with process([*command, "-n", "stock@bench", "-c", str(SLOTS)], log, **env):
        wait_for("ready.", log)
        starts, usual_starts = started(urgent), started(usual)
        first = set(sorted([*starts, *usual_starts])[:PRIORITY_TASKS])
        print(f"urgent tasks among the first {PRIORITY_TASKS}, rabbitmq: ", end="")
        print(f"{len(first & set(starts))} of {PRIORITY_TASKS}")
        ran = sum(
            isinstance(result.get(TIMEOUT_SECONDS, propagate=False), float) for result in revoked
        )
        print(f"revoked before the worker started, and run, rabbitmq: {ran} of {REVOKED}")
        sent_at = time.time()
        delay = started([send(countdown=COUNTDOWN_SECONDS)])[0] - sent_at
        print(f"countdown of {COUNTDOWN_SECONDS} s, rabbitmq: {delay:.2f} s")
        waits = []
        for _ in range(rounds):
            burst = [send() for _ in range(BURST)]
            sent_at = time.time()
            waits += [started([send()])[0] - sent_at]
            started(burst)
    report_waits("rabbitmq", waits)


def report_waits(name: str, waits: list[float]) -> None:
    text = f"wait behind a burst of {BURST}, {name}: p50 {statistics.median(waits) * 1000:.0f} ms"
    print(f"{text} of {len(waits)} (the burst alone takes {BURST / SLOTS * TASK_SECONDS:.1f} s)")


def fleet_worker(url: str, folder: Path, rounds: int, cancelled: list[str]) -> None:
    """The same burst, and what becomes of messages that were cancelled before a worker started."""
    profile, simulator, log = (folder / name for name in ("profile", "simulator", "realtime"))
    profile.write_text(json.dumps({"latency": {"mean": TASK_SECONDS}}))
    with process(["workers.onebox.simulator", "--profile", str(profile)], simulator):
        base = wait_for("listening on", simulator).split()[-1]
        env = {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        command = ["celery", "-A", "workers.realtime.app", "worker", "-n", "fleet@bench"]
        with process([*command, "-c", str(SLOTS)], log, **env), Fleet(url) as fleet:
            wait_for_worker(url, log)
            waits = [wait_of_quiet_tenant(fleet) for _ in range(rounds)]
            ran = sum(fleet.status(id_) != "REVOKED" for id_ in cancelled)
    print(f"cancelled before the worker started, and run, redis: {ran} of {len(cancelled)}")
    report_waits("redis", waits)


def wait_of_quiet_tenant(fleet: Fleet) -> float:
    fields = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How are you?"}]}
    busy, quiet = (
        CompletionRequest.parse(fields | {"lane": "realtime", "tenant_id": tenant})
        for tenant in ("busy", "quiet")
    )
    burst = fleet.submit_many([busy] * BURST)
    wait = fleet.result(fleet.submit(quiet), TIMEOUT_SECONDS).receipt.queue_wait
    for ticket in burst:
        fleet.result(ticket, TIMEOUT_SECONDS)
    assert wait is not None
    return wait


def measure(broker: str, folder: Path, options: argparse.Namespace) -> None:
    with redis_server(folder / "valkey") as valkey:
        url = valkey.url
        TwoSystems(url, broker).waiting()
        check_server(broker)
        for name in SIDES:
            kill_producers(name, url, broker, options.kills)
        for fsync in ("always", "everysec"):
            compare_submits(url, broker, options.submits, fsync)
        find_and_remove(url, broker)
        with stock_app(broker, url) as app:
            stock_worker(app, url, broker, folder, options.rounds)
        with redis.Redis.from_url(url) as store:
            store.flushdb()
        fleet_worker(url, folder, options.rounds, cancel_waiting(url, broker))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url", required=True, help="a RabbitMQ server: amqp://user:pw@host:5672//"
    )
    parser.add_argument("--submits", type=int, default=1000, help="submits of each side")
    parser.add_argument("--kills", type=int, default=100, help="killed producers of each side")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.url, Path(folder), options)


if __name__ == "__main__":
    main()
