"""The ASGI application: the routes, and what is open as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import page
from api.answering import cancels_done
from api.browsers import BrowserCheck
from api.call import endpoint
from api.endpoints import batches, chat, embeddings, files, health, models, moderations, responses
from api.errors import ApiError
from api.metrics import Measured
from api.open_calls import CutCalls, OpenCalls, ended
from api.services import Services

#: Threads for calls that block: submits, cancels, reads of large bodies.
_THREADS = 64
#: Seconds that the end of the process waits for the calls that it cuts, and for their cancels.
_CUT_SECONDS, _CANCEL_SECONDS = 2.0, 8.0

Open = Callable[[], AbstractAsyncContextManager[Services]]


def build_app(open_services: Open) -> Starlette:
    """Return the application.

    Args:
        open_services: Opens what the endpoints share, and closes it when the application ends.
    """
    calls: OpenCalls = set()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, "api"))
        async with open_services() as services:
            app.state.services = services
            yield
            await ended(calls, _CUT_SECONDS)
            await cancels_done(_CANCEL_SECONDS)

    return Starlette(
        routes=_routes(),
        middleware=[Middleware(CutCalls, calls), Middleware(Measured), Middleware(BrowserCheck)],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
        lifespan=lifespan,
    )


def _routes() -> list[Route]:
    return [
        Route("/v1/chat/completions", endpoint("caller", chat.create), methods=["POST"]),
        Route("/v1/embeddings", endpoint("caller", embeddings.create), methods=["POST"]),
        Route("/v1/moderations", endpoint("caller", moderations.create), methods=["POST"]),
        Route("/v1/responses", endpoint("caller", responses.create), methods=["POST"]),
        Route("/v1/responses/{response_id}", endpoint("caller", responses.retrieve)),
        Route(
            "/v1/responses/{response_id}", endpoint("caller", responses.delete), methods=["DELETE"]
        ),
        Route(
            "/v1/responses/{response_id}/cancel",
            endpoint("caller", responses.cancel),
            methods=["POST"],
        ),
        *_file_routes(),
        Route("/v1/models", endpoint("caller", models.list_models)),
        Route("/v1/models/{model:path}", endpoint("caller", models.retrieve)),
        Route("/healthz", health.healthz),
        Route("/readyz", health.readyz),
        Route("/metrics", endpoint("reader", health.metrics)),
        *page.ROUTES,
    ]


def _file_routes() -> list[Route]:
    file, batch = "/v1/files/{file_id}", "/v1/batches/{batch_id}"
    return [
        Route("/v1/files", endpoint("caller", files.create), methods=["POST"]),
        Route("/v1/files", endpoint("caller", files.list_files)),
        Route(file, endpoint("caller", files.retrieve)),
        Route(file, endpoint("caller", files.delete), methods=["DELETE"]),
        Route(f"{file}/content", endpoint("caller", files.content)),
        Route("/v1/batches", endpoint("caller", batches.create), methods=["POST"]),
        Route("/v1/batches", endpoint("caller", batches.list_batches)),
        Route(batch, endpoint("caller", batches.retrieve)),
        Route(f"{batch}/cancel", endpoint("caller", batches.cancel), methods=["POST"]),
    ]


async def _http_error(request: Request, error: Any) -> Response:
    """Starlette's own refusals: no such path, or no such method."""
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    code = HTTPStatus(error.status_code).name.lower()
    return ApiError(error.status_code, code, message, headers=headers).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    """A defect. Starlette raises the error again, so the server logs it; the client sees none."""
    return ApiError(500, "internal_error", "the server has failed; its log says why").response()
