"""Calls of a lane's tasks that plain Celery allows and the fleet cannot serve say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from primarch_fleet.errors import InvalidRequest
from tests.support.workers import StartWorker

# A module that another test of this process imported has the task too, and Celery shares it.
pytestmark = pytest.mark.filterwarnings("ignore:Task name .* is already registered")

#: The app of a worker, and a queue, a task and a model of its lane.
BATCH = ("scheduler.app", "batch", "batch.complete", "gpt-4o-mini")
LOCAL = ("workers.local.app", "local.smollm2-135m", "local.complete", "smollm2-135m")


class Caller:
    """A producer with its own declaration of a lane's task."""

    def __init__(self, producer: Any, lane: tuple[str, ...]) -> None:
        _, self.queue, self.name, model = lane
        self.task = producer.task(_answer, name=self.name, shared=False)
        self.body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}


def _answer(request: dict[str, Any]) -> None: ...


@pytest.fixture(scope="module", params=[BATCH, LOCAL], ids=["batch", "local"])
def caller(
    valkey_url: str, start_worker: StartWorker, request: pytest.FixtureRequest
) -> Iterator[Caller]:
    app, *_ = request.param
    with redis.Redis.from_url(valkey_url) as store:
        store.flushall()
    env = {"FLEET_REDIS_URL": valkey_url, "OPENAI_API_KEY": "x"}
    with (
        start_worker("called", app=app, env=env),
        Celery(broker=valkey_url, backend=valkey_url, set_as_current=False) as producer,
    ):
        yield Caller(producer, request.param)
        backend: Any = producer.backend
        backend.result_consumer.stop()


def test_map_and_chunks_are_refused_because_each_request_needs_an_id(caller: Caller) -> None:
    task, body = caller.task, caller.body
    for calls in (task.map([body, body]), task.starmap([[body]])):
        with pytest.raises(InvalidRequest, match="send a group"):
            calls.apply_async(queue=caller.queue).get(timeout=60)
    (part,) = task.chunks([(body,), (body,)], 2).apply_async(queue=caller.queue)
    with pytest.raises(InvalidRequest, match="send a group"):
        part.get(timeout=60)


def test_wrong_arguments_are_an_error_that_names_the_task(caller: Caller) -> None:
    def call(*args: Any, **kwargs: Any) -> None:
        caller.task.app.send_task(caller.name, args, kwargs, queue=caller.queue).get(timeout=60)

    with pytest.raises(TypeError, match=rf"^{caller.name}\(\) .* keyword argument 'model'"):
        call(**caller.body)
    with pytest.raises(TypeError, match=rf"^{caller.name}\(\) missing .*'request'"):
        call()
    with pytest.raises(TypeError, match=rf"^{caller.name}\(\) takes"):
        call(caller.body, caller.body)
