"""The wrapper of the HTTP API that counts calls, and ends those whose client reads nothing."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

from api.metrics import Measured


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": False})


async def nothing() -> Message:
    return {"type": "http.disconnect"}


def scope() -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/secret-id"}


def counted(status: str) -> float:
    labels = {"route": "unknown", "method": "GET", "status": status}
    return REGISTRY.get_sample_value("primarch_api_calls_total", labels) or 0.0


def test_a_call_is_counted_by_route_and_status_without_its_path() -> None:
    before = counted("201")

    async def send(_: Message) -> None:
        pass

    asyncio.run(Measured(answers)(scope(), nothing, send))
    assert counted("201") == before + 1
    assert REGISTRY.get_sample_value("primarch_api_open_calls") == 0


def test_a_client_that_takes_no_part_of_its_answer_is_left() -> None:
    async def send(_: Message) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(Measured(answers, send_seconds=0.01)(scope(), nothing, send))
    assert REGISTRY.get_sample_value("primarch_api_open_calls") == 0
