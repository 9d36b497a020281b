"""The Celery app of a worker, in the process of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery

from tests.support.closed_backends import closed_backends
from workers.runtime.results.result_backend import backend_url


@contextmanager
def worker_app(broker_url: str, results_url: str) -> Iterator[Celery]:
    """A worker's app that is not the current app."""
    backend = backend_url(results_url)
    with Celery("worker", broker=broker_url, backend=backend, set_as_current=False) as app:
        app.conf.update(result_expires=600, result_failure_expires=60)
        app.conf.update(
            result_backend_thread_safe=True,
            result_backend_always_retry=True,
            result_backend_transport_options={
                "retry_policy": {"max_retries": None, "interval_start": 0.1, "interval_max": 0.5}
            },
        )
        with closed_backends(app):
            yield app
