"""A Celery app that has nothing to do with the fleet, with Celery's defaults."""

import os

import redis
from celery import Celery, Task

URL = os.environ["FLEET_TEST_URL"]

app = Celery("stock_app", broker=URL, backend=URL)
app.conf.update(
    task_default_queue="stock",
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 6,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)
_redis = redis.Redis.from_url(URL)


@app.task(bind=True)
def note(self: "Task[..., None]") -> None:
    """Add the task's id to the Redis list `stock_runs`."""
    _redis.rpush("stock_runs", str(self.request.id))
