"""Real messages, as producers send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery, chain, chord, group

from tests.fuzz.fleet import HOSTED, OWN
from tests.support.closed_backends import closed_backends

#: A queue that no worker reads.
_RECORDED = "recorded"
SILENT_TASKS = {
    f"scheduler.{name}"
    for name in ("aggregate", "poll", "promote", "sweep_bodies", "sweep_reservations")
}


def _request(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello?"}], **fields}


def _signatures(app: Celery) -> Iterator[tuple[str, Any]]:
    """Signatures of tasks of each kind, by the queue that they are for."""
    for queue, model in (("realtime", HOSTED), (f"local.{OWN}", OWN), ("batch", HOSTED)):
        lane = queue.partition(".")[0]
        complete = app.signature(f"{lane}.complete", args=[_request(model)])
        yield queue, complete
        limits: dict[str, Any] = {"time_limit": 60, "soft_time_limit": 50, "reply_to": "nobody"}
        yield queue, complete.clone().set(expires=3600, **limits)
        yield queue, complete.clone().set(priority=9, headers={"fleet_tenant": "a"})
        yield queue, complete.clone().set(shadow="other")
        yield queue, app.signature(f"{lane}.stream", args=[_request(model, stream=True)])
        yield queue, app.signature(f"{lane}.embed", args=[{"model": model, "input": "x"}])
        yield queue, chain(complete.clone(), app.signature("unknown", queue="nowhere"))
        yield queue, group([complete.clone(), complete.clone()])
        yield queue, chord([complete.clone()], app.signature("unknown", queue="nowhere"))
        link = app.signature("unknown", queue="nowhere")
        yield queue, complete.clone().on_error(link)
        stamped = complete.clone()
        stamped.stamp(visitor=None, stamped_headers=["case"], case="x")
        yield queue, stamped
    yield "scheduler", app.signature("scheduler.cancel", args=[["nobody"]])
    yield "scheduler", app.signature("scheduler.cancel_batch", args=["nothing"])
    yield "scheduler", app.signature("scheduler.poll")


def record(url: str, client: redis.Redis) -> list[tuple[str, dict[str, Any]]]:
    """Return real messages of every lane, each with its queue."""
    recorded: list[tuple[str, dict[str, Any]]] = []
    app = Celery("producer", broker=url, backend=url, set_as_current=False)
    with app, closed_backends(app):
        app.conf.task_default_priority = 0
        for queue, signature in _signatures(app):
            signature.apply_async(queue=_RECORDED)
            texts: Any = client.lrange(_RECORDED, 0, -1)
            client.delete(_RECORDED)
            recorded += [(queue, json.loads(text)) for text in texts]
    return recorded
