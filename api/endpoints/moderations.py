"""`POST /v1/moderations`."""

from __future__ import annotations

from starlette.responses import Response

from api.answering import answer
from api.call import Call
from api.requests import request_of
from primarch_fleet import ModerationRequest


async def create(call: Call) -> Response:
    """Answer whether the inputs violate a policy."""
    request = await request_of(call, ModerationRequest, await call.json())
    return await answer(call, request, await call.services.fleet.submit(request))
