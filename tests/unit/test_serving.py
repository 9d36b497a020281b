"""The seam between a lane's tasks and its server, and what an error becomes at it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from primarch_fleet import Completion, CompletionRequest, errors, protocol
from primarch_fleet.contract import Request
from tasks import services, serving
from tasks.receipts import RequestMetadata

REQUEST = CompletionRequest(model="m", messages=[{"role": "user", "content": "Hello"}]).to_wire()


class Limited:
    """A server that refuses everything."""

    async def serve(self, request: Request, envelope: RequestMetadata) -> Completion:
        raise errors.RateLimited("slow down")


class Context(dict[str, Any]):
    id, root_id = "task", None


def serve(**fields: Any) -> dict[str, Any]:
    task: Any = SimpleNamespace(request=Context())
    with services.override(backends={"realtime": Limited()}):
        return asyncio.run(serving.serve("realtime", task, CompletionRequest, REQUEST | fields))


def test_an_error_is_raised_by_the_task() -> None:
    with pytest.raises(errors.RateLimited):
        serve()


def test_an_error_is_returned_to_a_request_that_asks_for_that() -> None:
    told = serve(return_exceptions=True)["error"]
    assert told == {"code": "rate_limited", "message": "slow down", "retryable": True}


def test_a_deadline_that_has_passed_is_returned_too() -> None:
    late = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert serve(return_exceptions=True, deadline=late)["error"]["code"] == "deadline_exceeded"


def test_a_request_that_is_wrong_is_an_error_all_the_same() -> None:
    with pytest.raises(errors.InvalidRequest):
        serve(return_exceptions=True, messages=[])


def test_a_returned_error_is_raised_again_as_what_it_was() -> None:
    with pytest.raises(errors.RateLimited, match="slow down"):
        protocol.completion_or_raise(serve(return_exceptions=True))


def test_an_error_of_a_newer_fleet_is_a_failure() -> None:
    newer = {"error": {"code": "of_tomorrow", "message": "new", "retryable": False}}
    with pytest.raises(errors.RequestFailed, match="new"):
        protocol.completion_or_raise(newer)
