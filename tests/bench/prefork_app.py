"""Plain Celery beside the fleet: prefork processes that call `litellm.completion`."""

import os
from typing import Any

import litellm  # in the parent, so that its processes share the memory
from celery import Celery

from tests.bench.load import MESSAGES, MODEL

app = Celery("prefork", broker=os.environ["BENCH_URL"], backend=os.environ["BENCH_URL"])
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True)


@app.task
def complete() -> dict[str, Any]:
    answer: Any = litellm.completion(
        model=f"openai/{MODEL}", messages=MESSAGES, api_base=os.environ["OPENAI_BASE_URL"]
    )
    body: dict[str, Any] = answer.model_dump()
    return body
