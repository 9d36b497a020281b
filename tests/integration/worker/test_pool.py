"""The task pool in a real worker process."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from queue import Queue

import pytest
import redis
from celery import chain
from celery.exceptions import Ignore, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.queues import QueueDepth, count_waiting
from tests.support.workers import Producer, StartWorker, Worker, eventually
from workers.runtime.leases.leases import LEASES_KEY, RENEWALS_KEY
from workers.runtime.loop import event_loop
from workers.runtime.pool.pool_job import PoolJob

TIMEOUT = 30  # seconds; no result takes a tenth of it


@pytest.fixture(scope="module", autouse=True)
def _empty_server(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, _empty_server: None) -> Iterator[Worker]:
    with start_worker("pool", concurrency=500) as worker:
        yield worker


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client; the server is not emptied, because the module's worker uses it."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


def waiting(store: redis.Redis, queue: str) -> int:
    return QueueDepth.from_reply(count_waiting(store, queue)).depth


def nothing_leased(store: redis.Redis) -> bool:
    return not any((store.hlen(LEASES_KEY), store.zcard(RENEWALS_KEY), store.zcard(LEASED_TASKS)))


def run_count(store: redis.Redis, task_id: str) -> int:
    return store.lrange("runs", 0, -1).count(task_id)


def test_one_worker_runs_five_hundred_bodies_at_once(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("meet", 500) for _ in range(500)]
    assert {result.get(timeout=TIMEOUT) for result in results} == {500}
    eventually(lambda: nothing_leased(store))


def test_only_a_task_that_may_block_the_loop_takes_a_thread(
    start_worker: StartWorker, producer: Producer
) -> None:
    queue = {"queue": "threads"}
    with start_worker("threads", args=("-Q", "threads")) as worker:

        def threads() -> int:
            replies = producer.app.control.inspect([worker.name]).stats() or {}
            return int(replies[worker.name]["pool"]["threads"])

        resting = [producer.send("rest", 60, **queue) for _ in range(4)]
        assert producer.send("add", 1, 2, **queue).get(timeout=TIMEOUT) == 3
        assert threads() == 0
        link = producer.app.signature("tests.support.apps.pool_app.add", (3,), options=queue)
        assert producer.send("add", 1, 2, link=link, **queue).get(timeout=TIMEOUT) == 3
        assert threads() == 1
        for result in resting:
            result.revoke(terminate=True)
            with pytest.raises(TaskRevokedError):
                result.get(timeout=TIMEOUT)


def test_a_plain_def_task_runs(worker: Worker, producer: Producer) -> None:
    assert producer.send("add_plainly", 2, 3).get(timeout=TIMEOUT) == 5


def test_a_soft_limit_is_raised_inside_the_coroutine(worker: Worker, producer: Producer) -> None:
    result = producer.send("rest_softly", soft_time_limit=0.2)
    assert result.get(timeout=TIMEOUT) == "soft limit"


def test_an_uncaught_soft_limit_fails_the_task(worker: Worker, producer: Producer) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        producer.send("rest", 60, soft_time_limit=0.2).get(timeout=TIMEOUT)


def test_a_hard_limit_fails_the_task_cancels_its_body_and_acknowledges(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("rest", 60, time_limit=0.3)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    eventually(lambda: result.id in store.lrange("cancelled", 0, -1))
    eventually(lambda: nothing_leased(store))


def test_a_hard_limit_does_not_wait_for_a_body_that_swallows_cancellation(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("swallow_cancellation", time_limit=0.3)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    eventually(lambda: "swallow_cancellation" in store.lrange("cancelled", 0, -1))
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5


def test_revoking_a_running_task_cancels_its_body_and_acknowledges(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("rest", 60)
    eventually(lambda: run_count(store, result.id))
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    eventually(lambda: result.id in store.lrange("cancelled", 0, -1))
    eventually(lambda: nothing_leased(store))


def test_a_queued_task_is_revoked_without_waiting_for_its_turn(
    start_worker: StartWorker, producer: Producer, worker: Worker, store: redis.Redis
) -> None:
    args = ("--prefetch-multiplier", "2", "-Q", "narrow")
    with start_worker("narrow", concurrency=1, args=args):
        running = producer.send("rest", 60, queue="narrow")
        eventually(lambda: run_count(store, running.id))
        queued = producer.send("rest", 60, queue="narrow")
        eventually(lambda: store.hlen(LEASES_KEY) == 2)
        queued.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            queued.get(timeout=TIMEOUT)
        assert not running.ready()
        running.revoke(terminate=True)
        eventually(lambda: nothing_leased(store))
        assert run_count(store, queued.id) == 0


def test_the_body_and_its_child_tasks_see_the_request(worker: Worker, producer: Producer) -> None:
    result = producer.send("read_request_id")
    assert result.get(timeout=TIMEOUT) == [result.id, result.id]


@pytest.mark.parametrize("task", ["retry_twice", "autoretry_twice"])
def test_a_task_is_retried(worker: Worker, producer: Producer, task: str) -> None:
    assert producer.send(task).get(timeout=TIMEOUT) == 2


def test_a_chain_runs_one_body_after_the_other(worker: Worker, producer: Producer) -> None:
    add = "tests.support.apps.pool_app.add"
    signature = producer.app.signature
    result = chain(signature(add, (1, 2)), signature(add, (3,)), app=producer.app).apply_async()
    assert result.get(timeout=TIMEOUT) == 6


def test_ignore_stores_nothing_and_acknowledges(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("ignore")
    eventually(lambda: not waiting(store, "celery") and nothing_leased(store))
    assert result.state == "PENDING"


def test_reject_fails_the_task_and_acknowledges(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    with pytest.raises(Exception, match="no"):
        producer.send("reject").get(timeout=TIMEOUT)
    eventually(lambda: nothing_leased(store))


def test_a_body_that_raises_system_exit_fails_only_its_task(
    worker: Worker, producer: Producer
) -> None:
    with pytest.raises(RuntimeError, match="SystemExit"):
        producer.send("exit_worker").get(timeout=TIMEOUT)
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5


def test_system_exit_in_a_child_task_does_not_stop_the_loop(
    worker: Worker, producer: Producer
) -> None:
    assert producer.send("exit_from_a_child").get(timeout=TIMEOUT) == "still running"
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5


def test_sigterm_lets_short_tasks_end_and_returns_long_tasks_for_another_worker(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    queue = ("-Q", "drained")
    with start_worker("old", args=queue, env={"FLEET_TEST_DRAIN": "1"}) as old:
        short = producer.send("rest", 0.5, queue="drained")
        long = producer.send("rest", 2, queue="drained")
        eventually(lambda: run_count(store, short.id) and run_count(store, long.id))
        old.signal(signal.SIGTERM)
        assert old.process.wait(20) == 0
    assert short.get(timeout=TIMEOUT) == "rested"
    assert store.lrange("cancelled", 0, -1).count(long.id) == 1
    assert nothing_leased(store)
    assert waiting(store, "drained") == 1
    with start_worker("new", args=queue):
        assert long.get(timeout=TIMEOUT) == "rested"
        eventually(lambda: nothing_leased(store))  # the result comes before the acknowledgement
    assert (run_count(store, short.id), run_count(store, long.id)) == (1, 2)


def test_sigquit_cancels_at_once_and_returns_all_messages(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("quit", args=("-Q", "quit")) as worker:
        result = producer.send("rest", 60, queue="quit")
        eventually(lambda: run_count(store, result.id))
        worker.signal(signal.SIGQUIT)
        worker.process.wait(20)
    assert (waiting(store, "quit"), nothing_leased(store)) == (1, True)


# Jobs and the event loop without a worker.


def new_job() -> PoolJob:
    names = ["callback", "accept_callback", "error_callback", "timeout_callback"]
    callbacks = dict.fromkeys(names, lambda *_: None)
    return PoolJob(1, lambda: None, callbacks, event_loop.get())


@pytest.fixture
def _loop() -> Iterator[None]:
    yield
    event_loop.stop()


@pytest.mark.usefixtures("_loop")
def test_either_the_body_or_a_claim_decides_the_outcome() -> None:
    async def body() -> str:
        await asyncio.sleep(0)
        return "done"

    outcomes = set()
    for number in range(300):
        job = new_job()
        assert job.accept()
        claims: Queue[bool] = Queue()
        claimant = threading.Thread(target=lambda job=job, claims=claims: claims.put(job.claim()))
        if number % 2:
            claimant.start()
        try:
            outcome = job.run_body(body)
        except Ignore:
            outcome = "claimed"
        if not number % 2:
            claimant.start()
        claimant.join()
        assert claims.get() == (outcome == "claimed")
        outcomes.add(outcome)
    assert "done" in outcomes


@pytest.mark.usefixtures("_loop")
def test_a_job_that_is_claimed_in_the_queue_never_starts_its_body() -> None:
    job = new_job()
    assert job.claim()
    assert not job.accept()
    with pytest.raises(Ignore):
        job.run_body(lambda: pytest.fail("the body was started"))
    assert not job.claim()


@pytest.mark.usefixtures("_loop")
def test_a_job_that_is_claimed_before_the_loop_has_reached_its_body_never_starts_it() -> None:
    job, is_free, started = new_job(), threading.Event(), list[str]()

    async def body() -> None:
        started.append("body")

    def run() -> None:
        with pytest.raises(Ignore):
            job.run_body(body)

    assert job.accept()
    event_loop.get().call_soon_threadsafe(is_free.wait)
    running = threading.Thread(target=run)
    running.start()
    eventually(lambda: job._outcome)
    assert job.claim()
    is_free.set()
    running.join()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), event_loop.get()).result()
    assert not started


@pytest.mark.usefixtures("_loop")
def test_stop_hooks_run_on_the_loop_newest_first_and_a_failing_hook_stops_no_other() -> None:
    calls: list[object] = []

    async def note() -> None:
        calls.append(asyncio.get_running_loop())

    async def fail() -> None:
        calls.append("failed")
        raise ValueError

    loop = event_loop.get()
    event_loop.at_stop(note)
    event_loop.at_stop(fail)
    event_loop.stop()
    assert calls == ["failed", loop]
    assert loop.is_closed()


@pytest.mark.usefixtures("_loop")
def test_a_stop_hook_that_hangs_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "CLOSE_SECONDS", 0.1)
    event_loop.at_stop(lambda: asyncio.sleep(3600))
    started = time.monotonic()
    event_loop.stop()
    assert time.monotonic() - started < 5
