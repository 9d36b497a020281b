"""Anthropic's Messages, streamed too, and its Message Batches; no other part of its API.

A batch is in progress until it ends; all its requests count as processing until then. All results
are in one file, in which each line has the outcome of its request.

Not simulated: batches of several models, errors in the parameters of a request that OpenAI's API
does not have too, thinking without a script, and archived batches.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from workers.onebox.simulator.anthropic_form import events, message, openai_body
from workers.onebox.simulator.app import App, WebHandler
from workers.onebox.simulator.batch import TERMINAL
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, missing
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.transport import Call, Reply, as_json

_PATHS = {
    ("POST", "/v1/chat/completions"): "/v1/messages",
    ("POST", "/v1/batches"): "/v1/messages/batches",
    ("GET", "/v1/batches"): "/v1/messages/batches",
    ("GET", "/v1/batches/{id}"): "/v1/messages/batches/{id}",
    ("POST", "/v1/batches/{id}/cancel"): "/v1/messages/batches/{id}/cancel",
    ("GET", "/v1/files/{id}/content"): "/v1/messages/batches/{id}/results",
}
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MAX_PAGE_SIZE = 1000
_VERSION = "2023-06-01"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_UNEXECUTED = {"batch_cancelled": "canceled", "batch_expired": "expired"}


class AnthropicApp(App):
    """A workspace with its Messages and Message Batches."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider)
        provider.form = message

    def reset(self) -> None:
        """Delete the record of created batches too."""
        super().reset()
        self._totals: dict[str, int] = {}
        #: The bodies with which batches were created, as received.
        self.created_bodies: list[JsonObject] = []

    def _routes(self) -> Iterator[web.RouteDef]:
        for route in super()._routes():
            path = _PATHS.get((route.method, route.path))
            if path is not None:
                yield web.route(route.method, path, _with_anthropic_errors(route.handler))

    def _authorize(self, request: web.Request) -> None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        key = request.headers.get("x-api-key") or bearer  # the SDK sends it as a bearer token
        accepted = self.provider.profile.api_keys
        if not key or (accepted and key not in accepted):
            raise ApiError(401, "invalid x-api-key")
        if request.headers.get("anthropic-version") != _VERSION:
            raise invalid(f"anthropic-version: only {_VERSION} is simulated", None)

    async def _complete(self, call: Call) -> Reply:
        _check_params(call.body, "")
        return await self._answer(call, openai_body(call.body), events)

    async def _create_batch(self, call: Call) -> Reply:
        requests = _check_requests(call.body.get("requests"))
        lines = (json.dumps(_openai_line(request)).encode() + b"\n" for request in requests)
        form = {"file": ("input.jsonl", b"".join(lines)), "purpose": "batch"}
        body = {
            "input_file_id": self._files.upload(form).id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        reply = await super()._create_batch(replace(call, body=body))
        batch = json.loads(reply.parts[0])
        self._totals[batch["id"]] = len(requests)
        self.created_bodies.append(call.body)
        return as_json(self._anthropic_batch(batch))

    async def _retrieve_batch(self, call: Call) -> Reply:
        return self._anthropic_reply(await super()._retrieve_batch(call))

    async def _cancel_batch(self, call: Call) -> Reply:
        return self._anthropic_reply(await super()._cancel_batch(call))

    async def _list_batches(self, call: Call) -> Reply:
        """Newest first: the batches after `after_id`, or those just before `before_id`."""
        batches, limit = list(self._all_batches()), int(call.query.get("limit", 20))
        if not 1 <= limit <= _MAX_PAGE_SIZE:
            raise invalid("limit: must be from 1 to 1000", None)
        ids = [batch["id"] for batch in batches]
        before, after = (call.query.get(name) for name in ("before_id", "after_id"))
        start, end = _index(ids, after, -1) + 1, _index(ids, before, len(ids))
        if before is not None:
            start = max(start, end - limit)
        data = [self._anthropic_batch(batch) for batch in batches[start : min(end, start + limit)]]
        has_more = start > 0 if before is not None else end > start + limit
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return as_json({"data": data, "has_more": has_more, "first_id": first, "last_id": last})

    async def _file_content(self, call: Call) -> Reply:
        batch = self._batches.retrieve(call.query["id"])
        if batch["status"] not in TERMINAL:
            raise ApiError(404, "The results of this batch are not available yet.")
        return Reply((b"".join(self._result_lines(batch)),), "application/x-jsonl")

    def _all_batches(self) -> Iterator[JsonObject]:
        query: JsonObject = {"limit": "100"}
        while True:
            page = self._batches.list(query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def _result_lines(self, batch: JsonObject) -> Iterator[bytes]:
        for name in ("output_file_id", "error_file_id"):
            if batch[name]:
                content = self._files.find(batch[name]).content
                yield from map(_result_line, content.splitlines(keepends=True))

    def _anthropic_reply(self, reply: Reply) -> Reply:
        return as_json(self._anthropic_batch(json.loads(reply.parts[0])))

    def _anthropic_batch(self, batch: JsonObject) -> JsonObject:
        ended = batch["status"] in TERMINAL
        cancelled, ended_at = batch["cancelling_at"], batch[f"{batch['status']}_at"] if ended else 0
        running = "canceling" if batch["status"] == "cancelling" else "in_progress"
        results = f"/v1/messages/batches/{batch['id']}/results"
        return {
            "id": batch["id"],
            "type": "message_batch",
            "processing_status": "ended" if ended else running,
            "request_counts": self._counts(batch, ended),
            "created_at": _time(batch["created_at"]),
            "expires_at": _time(batch["expires_at"]),
            "ended_at": _time(ended_at) if ended else None,
            "cancel_initiated_at": _time(cancelled) if cancelled else None,
            "archived_at": None,
            "results_url": results if ended else None,
        }

    def _counts(self, batch: JsonObject, ended: bool) -> JsonObject:
        total = self._totals[batch["id"]]
        counts: Counter[str] = Counter(processing=0, succeeded=0, errored=0, canceled=0, expired=0)
        if not ended:
            return {**counts, "processing": total}
        counts.update(filter(None, map(_result_type, self._result_lines(batch))))
        # Requests whose result line a fault rule corrupted were executed too.
        counts["succeeded"] += max(0, total - counts.total())
        return dict(counts)


def _with_anthropic_errors(handler: Any) -> WebHandler:
    """The handler with its error responses in Anthropic's form."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if isinstance(response, web.Response) and response.status >= 400 and response.text:
            message = json.loads(response.text)["error"]["message"]
            error = {"type": _error_type(response.status), "message": message}
            response.text = json.dumps({"type": "error", "error": error})
        return response

    return serve


def _error_type(status: int) -> str:
    return _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _index(ids: list[str], wanted: str | None, default: int) -> int:
    if wanted is None:
        return default
    if wanted not in ids:
        raise invalid(f"no batch with id {wanted}", None)
    return ids.index(wanted)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _check_requests(requests: Any) -> list[JsonObject]:
    if not isinstance(requests, list) or not requests:
        raise invalid("requests: Field required", None)
    ids = [str(request.get("custom_id")) for request in requests]
    if not all(map(_CUSTOM_ID.fullmatch, ids)):
        raise invalid("requests.custom_id: String should match '^[a-zA-Z0-9_-]{1,64}$'", None)
    if len(set(ids)) < len(ids):
        raise invalid("requests.custom_id: must be unique within the batch", None)
    for request in requests:
        _check_params(request["params"], "requests.params.")
    return requests


def _check_params(params: JsonObject, prefix: str) -> None:
    for name in ("model", "messages", "max_tokens"):
        if name not in params:
            raise missing(f"{prefix}{name}")
    if any(message["role"] not in ("user", "assistant") for message in params["messages"]):
        raise invalid(f"{prefix}messages.role: must be 'user' or 'assistant'", None)


def _openai_line(request: JsonObject) -> JsonObject:
    line = {"method": "POST", "url": "/v1/chat/completions"}
    return {**line, "custom_id": request["custom_id"], "body": openai_body(request["params"])}


def _result_line(raw: bytes) -> bytes:
    try:
        line: JsonObject = json.loads(raw)
    except ValueError:  # corrupted by a fault rule
        return raw
    scripted = line.get("result")
    result = {"custom_id": line["custom_id"], "result": scripted or _result(line)}
    return json.dumps(result).encode() + b"\n"


def _result_type(raw: bytes) -> str | None:
    try:
        return str(json.loads(raw)["result"]["type"])
    except ValueError:
        return None


def _result(line: JsonObject) -> JsonObject:
    response, error = line["response"], line["error"]
    if error and error["code"] in _UNEXECUTED:
        return {"type": _UNEXECUTED[error["code"]]}
    if response and response["status_code"] == 200:
        return {"type": "succeeded", "message": response["body"]}
    status = response["status_code"] if response else 500
    cause = error or response["body"].get("error") or {"message": "Internal server error"}
    details = {"type": _error_type(status or 500), "message": cause["message"]}
    return {"type": "errored", "error": {"type": "error", "error": details, "request_id": "req_1"}}
