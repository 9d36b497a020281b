"""How a task of a lane is served, and how its errors are raised or returned."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from primarch_fleet import Completion, CompletionRequest, errors, protocol
from primarch_fleet.requests import Request
from tasks import services, serving
from tasks.receipts import RequestMetadata

REQUEST = CompletionRequest(model="m", messages=[{"role": "user", "content": "Hello"}]).to_wire()


class RefusingBackend:
    """A backend that refuses everything."""

    async def serve(self, request: Request, metadata: RequestMetadata) -> Completion:
        raise errors.RateLimited("slow down")


class Context(dict[str, Any]):
    id, root_id = "task", None


def serve(**fields: Any) -> dict[str, Any]:
    task: Any = SimpleNamespace(request=Context())
    with services.override(backends={"realtime": RefusingBackend()}):
        return asyncio.run(serving.serve("realtime", task, CompletionRequest, REQUEST | fields))


@pytest.mark.parametrize(
    "error", [errors.InvalidRequest, errors.UnknownModel, errors.ContextWindowExceeded]
)
def test_a_refusal_of_the_request_is_returned_if_wanted(error: type[errors.FleetError]) -> None:
    class Backend:
        async def serve(self, request: Request, metadata: RequestMetadata) -> Completion:
            raise error("no")

    task: Any = SimpleNamespace(request=Context())
    body = REQUEST | {"lane": "local", "return_exceptions": True}
    with services.override(backends={"local": Backend()}):
        value = asyncio.run(serving.serve("local", task, CompletionRequest, body))
    assert value == protocol.error_value(error("no"))


@pytest.mark.parametrize(("lane", "queue"), [("realtime", "realtime"), ("local", "local.<model>")])
def test_a_task_in_the_queue_of_another_lane_says_where_to_send_it(lane: Any, queue: str) -> None:
    task: Any = SimpleNamespace(request=Context())
    with (
        services.override(backends={}),
        pytest.raises(errors.InvalidRequest, match=f"send the task to the queue {queue}"),
    ):
        asyncio.run(serving.serve(lane, task, CompletionRequest, REQUEST))


def test_an_error_is_raised_by_the_task() -> None:
    with pytest.raises(errors.RateLimited):
        serve()


def test_an_error_is_returned_to_a_request_with_return_exceptions() -> None:
    returned = serve(return_exceptions=True)["error"]
    assert returned == {"code": "rate_limited", "message": "slow down", "retryable": True}


def test_a_passed_deadline_is_returned_too() -> None:
    late = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert serve(return_exceptions=True, deadline=late)["error"]["code"] == "deadline_exceeded"


def test_an_invalid_request_is_always_raised() -> None:
    with pytest.raises(errors.InvalidRequest):
        serve(return_exceptions=True, messages=[])


def test_a_returned_error_is_raised_by_the_producer_with_its_type() -> None:
    with pytest.raises(errors.RateLimited, match="slow down"):
        protocol.completion_or_raise(serve(return_exceptions=True))


def test_an_unknown_error_code_of_a_newer_fleet_is_request_failed() -> None:
    newer = {"error": {"code": "of_tomorrow", "message": "new", "retryable": False}}
    with pytest.raises(errors.RequestFailed, match="new"):
        protocol.completion_or_raise(newer)
