"""A chord of a thousand batch requests; some of them fail."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chord
from celery.exceptions import InvalidTaskError

from primarch_fleet import Completion, errors, protocol
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

REQUESTS = 1000
#: Refuses one line in twenty.
REFUSED = Fault(scope="line", every=20, status=400, code="wrong", message="Not this one.")

#: A link of a group whose tasks are none.
UNREADABLE = {"task": "celery.group", "kwargs": {"tasks": 5}, "subtask_type": "group"}


async def run_chord(b: Bench, app: Celery, **options: Any) -> None:
    """Run a chord of REQUESTS tasks until each has its result."""
    tasks = [
        app.tasks["batch.complete"].s(chat(f"question {n}", **options).to_wire())
        for n in range(REQUESTS)
    ]
    body = app.tasks["test.join"].s().set(task_id="the-body")
    chord(tasks)(body.on_error(app.tasks["test.errback"].s().set(task_id="the-errback")))
    assert await b.work() == REQUESTS
    await b.until_idle()
    assert b.batches_created() == 1


async def test_the_body_runs_once_with_answers_and_errors_with_return_exceptions(
    opened: OpenBench, app: Celery
) -> None:
    async with opened(profile(REFUSED)) as b:
        await run_chord(b, app, return_exceptions=True)
        assert await b.work() == 1, "the body, once"
        values = await b.outcome(app.AsyncResult("the-body"))
        assert len(values) == REQUESTS
        failed = [value["error"] for value in values if "error" in value]
        error = {"code": "provider_error", "message": "Not this one.", "retryable": False}
        assert failed == [error] * (REQUESTS // 20)
        for number, value in enumerate(values):
            if "error" in value:
                with pytest.raises(errors.ProviderError, match="Not this one"):
                    protocol.completion_or_raise(value)
            else:
                assert f"question {number}" in Completion.model_validate(value).text


async def test_the_errback_runs_once_without_return_exceptions(
    opened: OpenBench, app: Celery
) -> None:
    async with opened(profile(REFUSED)) as b:
        await run_chord(b, app)
        assert await b.work() == 1, "the errback, once"
        assert await b.outcome(app.AsyncResult("the-errback")) == "the-body"
        assert len(b.completed) == REQUESTS


async def test_a_task_whose_links_celery_cannot_read_fails_once(
    opened: OpenBench, app: Celery
) -> None:
    async with opened(profile(REFUSED.model_copy(update={"every": 1}))) as b:
        (result,) = await b.send(chat("question"), link_error=[UNREADABLE])
        await b.until_idle()
        assert isinstance(await b.outcome(result), InvalidTaskError | errors.ProviderError)
        assert b.batches_created() == 1
