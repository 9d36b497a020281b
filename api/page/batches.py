"""The page of the batch lane: live batches of the providers, and what waits for one."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from api.call import Call
from api.errors import ApiError
from api.page.actions import Done, Form
from api.page.reading import Rows, read
from api.page.view import render
from primarch_fleet.results import call_scheduler
from scheduler.admin.status import read_status
from scheduler.cli.connection import with_store

#: For a batch worker, and its provider, to answer.
_CANCEL_SECONDS = 15.0


async def show(call: Call) -> Response:
    """Show live batches and waiting requests, as `fleet batches` does."""
    lane = await read(call.services, lambda services: with_store(read_status, services.url))
    status = lane.as_json()
    return await render(
        call,
        "batches.html",
        refreshes=True,
        now=lane.now,
        creation_paused=lane.creation_paused,
        accounts=status["paused"],
        overdue=lane.overdue,
        jobs=Rows.of(status["jobs"]),
        waiting=Rows.of(status["waiting"]),
    )


async def cancel(call: Call, form: Form) -> Done:
    """Cancel a live batch at its provider, as `fleet cancel --batch` does."""
    intent = form.one("intent")
    if not intent:
        raise ApiError(400, "invalid_form", "name a batch")
    problem = await asyncio.to_thread(
        call_scheduler, call.services.fleet.app, "scheduler.cancel_batch", intent, _CANCEL_SECONDS
    )
    return Done(f"Batch {intent}: {problem or 'cancelled at its provider'}.", "/batches")
