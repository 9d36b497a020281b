"""The list of `fleet workers`."""

from __future__ import annotations

import time

from celery import Celery

from scheduler.admin.queues import read_workers
from tests.support.workers import StartWorker

TIMEOUT_SECONDS = 3.0


def test_workers_when_they_have_answered_once_are_not_awaited_until_the_timeout_again(
    start_worker: StartWorker, valkey_url: str
) -> None:
    with start_worker("listed"), Celery(broker=valkey_url, set_as_current=False) as app:
        started = time.monotonic()
        [worker] = read_workers(app, TIMEOUT_SECONDS)
        assert time.monotonic() - started < 2 * TIMEOUT_SECONDS
    assert (worker.worker, worker.queues, worker.running) == ("listed@test", ["celery"], 0)


def test_workers_when_none_answers_are_none(valkey_url: str) -> None:
    with Celery(broker=valkey_url, set_as_current=False) as app:
        assert read_workers(app, 0.1) == []
