"""A service with an own Celery app, which variables of the environment configure, and a Fleet."""

import os

import pytest
import redis

from primarch_fleet import Fleet
from primarch_fleet.errors import Cancelled
from tests.support.producer import messages, request

#: What Celery prefers to the settings of any app; nothing listens there.
VARIABLES = {
    "CELERY_BROKER_URL": "amqp://127.0.0.1:1//",
    "CELERY_BROKER_READ_URL": "amqp://127.0.0.1:1//",
    "CELERY_BROKER_WRITE_URL": "amqp://127.0.0.1:1//",
    "CELERY_RESULT_BACKEND": "rpc://",
}


def test_a_client_uses_its_own_url_whatever_celerys_variables_say(
    server: redis.Redis, valkey_url: str
) -> None:
    os.environ.update(VARIABLES)
    with Fleet(valkey_url, timeout=1) as fleet:
        ticket = fleet.submit(request())
        fleet.app.send_task("realtime.complete", queue="realtime")
        fleet.app.control.broadcast("ping")
        assert len(messages(server)) == 2
        assert fleet.status(ticket) == "PENDING"
        assert fleet.cancel(ticket)
        with pytest.raises(Cancelled):
            fleet.result(ticket, timeout=5)
