"""`/v1/batches`: create, retrieve, list, cancel."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from api.call import Call
from api.endpoints.files import expiry_seconds, files_of, limit_of, page_response
from api.errors import NO_RETRY, ApiError, not_found
from api.requests import allowed_lane
from api.routing_headers import PREFIX, routing_fields
from api.store.batches import COMPLETION_WINDOW, FINAL, MAX_BATCHES, BatchSpec, BatchStore
from api.store.pages import PageQuery
from primarch_fleet.errors import IdempotencyConflict, InvalidRequest
from primarch_fleet.requests import REQUESTS, Request

ENDPOINTS = [kind.endpoint for kind in REQUESTS.values()]
#: OpenAI's limits.
_MAX_LISTED, _DEFAULT_LISTED = 100, 20
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
#: Parameters of OpenAI's call.
_PARAMETERS = {
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
}


async def create(call: Call) -> Response:
    """Create a batch of the requests of a file."""
    body = await call.json()
    key, spec = call.headers.get("idempotency-key"), _spec(call, body)
    store = _batches(call)
    done, identity = await store.create(spec, key)
    if done == "no file":
        raise not_found("file", spec.input_file_id)
    if done == "conflict":
        raise IdempotencyConflict
    if done == "full":
        message = f"this tenant has {MAX_BATCHES} batches: wait until the oldest expires"
        raise ApiError(429, "rate_limit_exceeded", message)
    return JSONResponse(await _body(call, identity))


async def retrieve(call: Call) -> Response:
    """Show a batch."""
    return JSONResponse(await _body(call, call.request.path_params["batch_id"]))


async def list_batches(call: Call) -> Response:
    """List the tenant's batches, the newest first."""
    limit = limit_of(call, default=_DEFAULT_LISTED, most=_MAX_LISTED)
    query = PageQuery(limit, call.request.query_params.get("after"))
    return page_response(call, await _batches(call).page(call.caller.tenant, query))


async def cancel(call: Call) -> Response:
    """Cancel a batch: lines that have an answer stay answered."""
    identity = call.request.path_params["batch_id"]
    status = await _batches(call).cancel(call.caller.tenant, identity)
    if status is None:
        raise not_found("batch", identity)
    if status in FINAL:
        message = f"the batch is {status}; only a batch that runs can be cancelled"
        raise ApiError(409, "invalid_batch_status", message, headers=NO_RETRY)
    return JSONResponse(await _body(call, identity))


async def _body(call: Call, identity: str) -> dict[str, Any]:
    batch = await _batches(call).get(call.caller.tenant, identity)
    if batch is None:
        raise not_found("batch", identity)
    return batch.body()


def _batches(call: Call) -> BatchStore:
    return BatchStore(call.services.redis, files_of(call))


def _spec(call: Call, body: dict[str, Any]) -> BatchSpec:
    if unknown := sorted(body.keys() - _PARAMETERS):
        raise _wrong(unknown[0][:100], "no parameter of /v1/batches")
    if not isinstance(body.get("input_file_id"), str):
        raise _wrong("input_file_id", "pass the id of a file of the purpose batch")
    if body.get("endpoint") not in ENDPOINTS:
        raise _wrong("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    if body.get("completion_window") != COMPLETION_WINDOW:
        raise _wrong("completion_window", f"must be {COMPLETION_WINDOW}")
    expires_after = body.get(name := "output_expires_after")
    if expires_after is not None and not isinstance(expires_after, dict):
        raise _wrong(name, "pass an object")
    metadata = _metadata(body.get("metadata"))
    return BatchSpec(
        tenant=call.caller.tenant,
        endpoint=body["endpoint"],
        input_file_id=body["input_file_id"],
        metadata=metadata,
        routing=_routing(call, metadata or {}),
        models=list(call.caller.models),
        output_seconds=expiry_seconds(call, expires_after, name),
    )


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > _MAX_PAIRS:
        raise _wrong("metadata", f"pass an object with at most {_MAX_PAIRS} keys")
    for key, text in value.items():
        if len(key) > _MAX_KEY or not isinstance(text, str) or len(text) > _MAX_VALUE:
            limits = f"keys have at most {_MAX_KEY} characters, values are texts of {_MAX_VALUE}"
            raise _wrong("metadata", limits)
    return value


def _routing(call: Call, metadata: dict[str, str]) -> dict[str, Any]:
    """The fields of each line's request by `x-fleet-*` headers or metadata."""
    written = {name: text for name, text in metadata.items() if name.startswith(PREFIX)}
    fields = routing_fields(call.headers, {"metadata": written})
    fields.pop("idempotency_key", None)  # that of the call; each line has its own
    default = "batch" if "batch" in call.caller.lanes else "auto"
    fields["lane"] = allowed_lane(call.caller, fields.get("lane", default))
    checked = Request(model="any", **fields)
    return checked.model_dump(mode="json", include=set(fields))


def _wrong(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {problem}")
