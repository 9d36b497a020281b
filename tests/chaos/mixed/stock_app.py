"""Stock Celery with the settings that its documentation names for reliability.

The task calls the provider as the fleet does, and returns the id of the answer.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from celery import Celery

from tests.chaos.mixed.settings import HOSTED, VISIBILITY_TIMEOUT_SECONDS

_url = os.environ["FLEET_REDIS_URL"]
app = Celery("stock", broker=_url, backend=_url)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS},
    result_backend_always_retry=True,
    result_expires=86_400,
    task_default_queue="stock",
)
#: Seconds for a call.
TIMEOUT_SECONDS = 30.0


@app.task(name="stock.complete")
def complete(prompt: str) -> str:
    """Ask the provider; return the id of its answer."""
    body: dict[str, Any] = {
        "model": HOSTED,
        "messages": [{"role": "user", "content": prompt}],
        "max_completion_tokens": 60,
    }
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ['CHAOS_KEY']}",
    }
    request = urllib.request.Request(
        f"{os.environ['CHAOS_PROVIDER']}/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return str(json.load(answer)["id"])
