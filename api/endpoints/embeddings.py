"""`POST /v1/embeddings`."""

from __future__ import annotations

from starlette.responses import Response

from api.answering import answer
from api.call import Call
from api.requests import request_of
from primarch_fleet import EmbeddingRequest


async def create(call: Call) -> Response:
    """Answer with the embeddings of the inputs."""
    request = await request_of(call, EmbeddingRequest, await call.json())
    return await answer(call, request, await call.services.fleet.submit(request))
