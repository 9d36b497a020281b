"""The page of open requests: those that match a filter, and cancelling them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.responses import Response

from api.call import Call
from api.errors import ApiError
from api.page.actions import Done, Form
from api.page.filters import query_of, read_filter
from api.page.reading import Rows, read
from api.page.view import render
from api.services import Services
from primarch_fleet.budgets import Ledger
from primarch_fleet.cancellation import Canceller
from primarch_fleet.contract import LANES
from primarch_fleet.errors import FleetError, UnknownRequest
from primarch_fleet.redis_support import once
from scheduler.admin.cancelling import Cancellation, counted
from scheduler.admin.open_requests import (
    PART_REQUESTS,
    STATES,
    FoundRequests,
    OpenRequests,
    RequestFilter,
)
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS

#: For a list of requests: a queue may have a hundred thousand.
_READ_SECONDS = 2.0
#: For the workers that have requests to answer.
_CANCEL_SECONDS = 15.0


async def show(call: Call) -> Response:
    """Show the open requests that match the filter in the address, without their prompts."""
    where = read_filter(RequestFilter, lambda name: call.request.query_params.get(name, ""))
    found = await read(call.services, lambda services: _read(services, where))
    return await render(
        call,
        "requests.html",
        where=where,
        query=query_of(where),
        lanes=LANES,
        states=STATES,
        found=found,
        rows=Rows.of(found.requests),
        cancelled_at_once=PART_REQUESTS,
    )


async def cancel(call: Call, form: Form) -> Done:
    """Cancel the requests that are chosen or, with `all`, those that match the filter."""
    where = read_filter(RequestFilter, form.one)
    if form.one("all"):
        if where.is_empty:
            raise ApiError(400, "invalid_form", "give a filter: all open requests would match")
        done = await asyncio.to_thread(_cancel_matching, call.services, where)
    elif ids := form.all("id"):
        done = _outcomes(
            await call.services.fleet.cancel_many(ids, _CANCEL_SECONDS, return_exceptions=True)
        )
    else:
        done = "No request was chosen."
    return Done(done, "/requests", query_of(where))


def _read(services: Services, where: RequestFilter) -> FoundRequests:
    with once(services.url, REDIS_TIMEOUT_SECONDS, text=False) as reader:
        return OpenRequests(reader, services.fleet.app.backend).read(where, _READ_SECONDS)


def _cancel_matching(services: Services, where: RequestFilter) -> str:
    """Cancel one part of the requests that match; say what was done."""
    with (
        once(services.url, REDIS_TIMEOUT_SECONDS) as client,
        once(services.url, REDIS_TIMEOUT_SECONDS, text=False) as reader,
    ):
        app = services.fleet.app
        part = next(OpenRequests(reader, app.backend).find(where), [])
        done = Cancellation(_CANCEL_SECONDS)
        done.cancel(Canceller(app, client, Ledger(client)), part)
    sentence = _sentence(counted(done.cancelled), done.ended, done.failed)
    return f"{sentence} More may match: repeat it." if len(part) == PART_REQUESTS else sentence


def _outcomes(outcomes: Sequence[bool | FleetError]) -> str:
    """Say what became of the requests that were chosen."""
    unknown = sum(isinstance(outcome, UnknownRequest) for outcome in outcomes)
    failed = sum(isinstance(outcome, FleetError) for outcome in outcomes) - unknown
    cancelled = sum(outcome is True for outcome in outcomes)
    ended = len(outcomes) - cancelled - failed
    return _sentence(f"{cancelled} request{'' if cancelled == 1 else 's'}", ended, failed)


def _sentence(cancelled: str, ended: int, failed: int) -> str:
    sentences = [f"{cancelled} cancelled."]
    if ended:
        sentences.append(f"{ended} had ended meanwhile.")
    if failed:
        sentences.append(
            f"{failed} not confirmed as cancelled; none of them is started again. Repeat it."
        )
    return " ".join(sentences)
