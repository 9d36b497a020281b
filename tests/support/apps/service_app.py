"""The Celery app of a service, with Celery's defaults, whose tasks call the fleet."""

from __future__ import annotations

import os

from celery import Celery

from primarch_fleet import Fleet, errors
from tests.support.producer import request

URL = os.environ["FLEET_TEST_URL"]
#: A database of its own: control commands reach all apps of a database.
OWN_URL = f"{URL.rpartition('/')[0]}/1"

app = Celery("service_app", broker=OWN_URL, backend=OWN_URL)
app.conf.update(task_default_queue="service", broker_connection_retry_on_startup=True)
#: Created before the worker forks, as services do.
fleet = Fleet(URL)


@app.task
def ask() -> str:
    """Submit a request and return its answer."""
    return fleet.result(fleet.submit(request(user_id="ask")), timeout=30).text


@app.task
def ask_with_own_client() -> str:
    """Do the same with a client of the task."""
    with Fleet(URL) as own:
        return own.result(own.submit(request(user_id="ask")), timeout=30).text


@app.task
def read_stream(task_id: str) -> str:
    """Read the stream of a request, and its result."""
    stream = fleet.stream(task_id, timeout=30)
    text = "".join(chunk.text for chunk in stream)
    return f"{text}, {stream.result(timeout=30).text}"


@app.task
def cancel(task_id: str, timeout: float) -> str:
    """Cancel a request; say what `Fleet.cancel` returned, or the code of its error."""
    try:
        return str(fleet.cancel(task_id, timeout))
    except errors.FleetError as error:
        return error.code
