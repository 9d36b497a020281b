"""A stock Celery app on RabbitMQ with a quorum queue, for `tests.bench.rabbitmq`."""

from __future__ import annotations

import os
import time

from celery import Celery
from kombu import Exchange, Queue

#: The queue, its exchange and its routing key.
QUEUE = "primarch_bench"
#: Seconds of a task, and of a call of the simulated provider beside it.
TASK_SECONDS = 0.1


def stock_app(broker: str | None, backend: str | None = None) -> Celery:
    """Return an app as Celery documents it for quorum queues.

    https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html

    Args:
        backend: A Redis for results; None stores none.
    """
    app = Celery("stock", broker=broker, backend=backend, set_as_current=False)
    exchange = Exchange(QUEUE, type="topic")  # a direct exchange has no delayed delivery
    arguments = {"x-queue-type": "quorum"}
    app.conf.update(
        task_queues=[Queue(QUEUE, exchange, routing_key=QUEUE, queue_arguments=arguments)],
        task_default_queue=QUEUE,
        task_default_exchange_type="topic",
        broker_transport_options={"confirm_publish": True},
        task_acks_late=True,
        worker_prefetch_multiplier=1,
    )
    return app


app = stock_app(os.environ.get("BENCH_BROKER"), os.environ.get("BENCH_BACKEND"))


@app.task(name="bench.work")
def work() -> float:
    """Wait; return the Unix seconds of the start."""
    started_at = time.time()
    time.sleep(TASK_SECONDS)
    return started_at
