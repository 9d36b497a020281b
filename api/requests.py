"""A call of OpenAI's API as a request of the fleet."""

from __future__ import annotations

from typing import Any

from api.call import Call
from api.errors import NO_RETRY, ApiError
from api.keys import Caller
from api.media_urls import check_media_urls
from api.routing_headers import routing_fields
from primarch_fleet.contract import LANES
from primarch_fleet.requests import Request
from primarch_fleet.requests.openai_body import request_from


async def request_of(
    call: Call, kind: type[Request], body: dict[str, Any], *, is_awaited: bool = True
) -> Request:
    """Return the request of a call, of the caller's tenant and within what the key may use.

    Args:
        kind: The class of the request.
        body: The body of the call.
        is_awaited: Whether the client waits on an open connection.

    Raises:
        ApiError: Status 400 or 403: a header is wrong, or the key may not use the model or lane.
        InvalidRequest: A parameter is wrong.
    """
    body = dict(body)
    routing = routing_fields(call.headers, body)
    model = body.get("model")
    if isinstance(model, str) and not call.caller.may_use(model):
        raise _forbidden(f"this key may not use the model {model[:100]!r}", "model")
    routing["lane"] = allowed_lane(call.caller, routing.get("lane", "auto"))
    if is_awaited:
        routing = _awaited(call, routing)
    await check_media_urls(body)
    return request_from(kind, body, {**routing, "tenant_id": call.caller.tenant})


def _awaited(call: Call, routing: dict[str, Any]) -> dict[str, Any]:
    """The routing of a request whose client waits on an open connection: no batch answers there.

    Without a limit, a request that saves costs would be parked for a batch.
    """
    if routing.get("lane") == "batch":
        raise ApiError(
            400,
            "invalid_request",
            "lane: a batch answers within hours; send `background: true` to /v1/responses, or a "
            "file to /v1/batches",
            param="lane",
        )
    if routing.get("cost_preference") == "cost":
        return {"max_latency": call.services.config.answer_timeout, **routing}
    return routing


def allowed_lane(caller: Caller, lane: Any) -> Any:
    """Return the lane of a request: the key's first lane where it has some and the call none.

    Raises:
        ApiError: Status 403: the key may not use the lane.
    """
    allowed = caller.lanes
    if not allowed:
        raise _forbidden("this key may not use any lane", "lane")
    if lane == "auto" and set(allowed) != set(LANES):
        return allowed[0]
    if lane in LANES and lane not in allowed:
        raise _forbidden(f"this key may not use the lane {lane}", "lane")
    return lane


def _forbidden(message: str, param: str) -> ApiError:
    return ApiError(403, "insufficient_permissions", message, param=param, headers=NO_RETRY)
