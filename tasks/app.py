"""The fleet's Celery app: its tasks by name, without a lane.

Beat and Flower run on it. A worker runs on the app of its lane (in workers/ and scheduler/): this
app, with the backend for the lane's tasks.
"""

from celery import Celery
from celery.signals import worker_init

from primarch_fleet import celery_redis

celery_redis.use_in_this_process()
app = Celery("fleet", task_cls="tasks.base:AsyncTask")
app.config_from_object("config.celeryconfig")
app.conf.include = ["tasks.realtime", "tasks.local", "tasks.batch"]


@worker_init.connect
def _require_lane(**_: object) -> None:
    if not app.conf.get("fleet_lane"):
        raise SystemExit(
            "tasks.app serves no lane; run a lane's app: celery -A workers.realtime.app worker, "
            "celery -A workers.local.app worker or celery -A scheduler.app worker"
        )
