"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.call import Call
from primarch_fleet.errors import FleetError


async def healthz(_: Request) -> Response:
    """Say that the process runs."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Say whether requests can be submitted: Redis answers, and a worker has told its models."""
    try:
        await request.app.state.services.fleet.catalogue()
    except FleetError as error:
        return JSONResponse({"status": "unavailable", "reason": error.code}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(_: Call) -> Response:
    """Show the metrics of this process to Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
