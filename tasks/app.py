"""The fleet's Celery app: its tasks by name, on no lane in particular.

Beat and Flower run on it. Workers run on the app of their lane (workers/, scheduler/), which is
this one with a server behind the lane's tasks.
"""

from celery import Celery
from celery.signals import worker_init

app = Celery("fleet", task_cls="tasks.base:AsyncTask")
app.config_from_object("config.celeryconfig")
app.conf.include = ["tasks.realtime", "tasks.local", "tasks.batch"]


@worker_init.connect
def _needs_a_lane(**_: object) -> None:
    if not app.conf.get("fleet_lane"):
        raise SystemExit(
            "A worker serves one lane: celery -A workers.realtime.app worker, "
            "celery -A workers.local.app worker or celery -A scheduler.app worker"
        )
