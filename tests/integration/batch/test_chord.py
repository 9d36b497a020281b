"""A thousand batch requests, some of which fail, under one chord."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chord

from primarch_fleet import Completion, errors, protocol
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

REQUESTS = 1000
#: One line in twenty.
REFUSED = Fault(scope="line", every=20, status=400, code="wrong", message="Not this one.")


async def ask(b: Bench, app: Celery, **options: Any) -> None:
    """A chord over REQUESTS requests, from a message each to a result each."""
    tasks = [
        app.tasks["batch.complete"].s(chat(f"question {n}", **options).to_wire())
        for n in range(REQUESTS)
    ]
    body = app.tasks["test.join"].s().set(task_id="the-body")
    chord(tasks)(body.on_error(app.tasks["test.told"].s().set(task_id="the-errback")))
    assert await b.work() == REQUESTS
    await b.until_idle()
    assert b.batches_created() == 1


async def test_its_body_runs_once_with_answers_and_errors_where_that_is_asked_for(
    opened: OpenBench, app: Celery
) -> None:
    async with opened(profile(REFUSED)) as b:
        await ask(b, app, return_exceptions=True)
        assert await b.work() == 1, "the body, once"
        values = await b.outcome(app.AsyncResult("the-body"))
        assert len(values) == REQUESTS
        failed = [value["error"] for value in values if "error" in value]
        told = {"code": "provider_error", "message": "Not this one.", "retryable": False}
        assert failed == [told] * (REQUESTS // 20)
        for number, value in enumerate(values):
            if "error" in value:
                with pytest.raises(errors.ProviderError, match="Not this one"):
                    protocol.completion_or_raise(value)
            else:
                assert f"question {number}" in Completion.model_validate(value).text


async def test_its_errback_runs_once_where_it_is_not(opened: OpenBench, app: Celery) -> None:
    async with opened(profile(REFUSED)) as b:
        await ask(b, app)
        assert await b.work() == 1, "the errback, once"
        assert await b.outcome(app.AsyncResult("the-errback")) == "the-body"
        assert len(b.completed) == REQUESTS
