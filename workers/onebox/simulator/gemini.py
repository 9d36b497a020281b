"""Gemini's batches of inline requests; no other part of its API.

Not simulated: input files, tools, and media in prompts.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from workers.onebox.simulator.app import App, WebHandler
from workers.onebox.simulator.batch import TERMINAL
from workers.onebox.simulator.errors import ApiError, JsonObject
from workers.onebox.simulator.transport import Call, Reply, as_json

_PATHS = {
    ("POST", "/v1/batches"): "/v1beta/models/{model}:batchGenerateContent",
    ("GET", "/v1/batches"): "/v1beta/batches",
    ("GET", "/v1/batches/{id}"): "/v1beta/batches/{id}",
    ("POST", "/v1/batches/{id}/cancel"): "/v1beta/batches/{id}:cancel",
}
_STATES = {
    "validating": "PENDING",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "expired": "EXPIRED",
    "cancelled": "CANCELLED",
}
_FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 499: 1, 503: 14, 504: 4}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
}


class GeminiApp(App):
    """An account at Google AI Studio."""

    def _routes(self) -> Iterator[web.RouteDef]:
        for route in super()._routes():
            path = _PATHS.get((route.method, route.path))
            if path is not None:
                yield web.route(route.method, path, _with_google_errors(route.handler))

    def _authorize(self, request: web.Request) -> None:
        accepted, key = self.provider.profile.api_keys, request.headers.get("x-goog-api-key")
        if not key or (accepted and key not in accepted):
            raise ApiError(401, "API key not valid. Please pass a valid API key.")

    async def _create_batch(self, call: Call) -> Reply:
        batch = call.body["batch"]
        requests = batch["input_config"]["requests"]["requests"]
        lines = [_openai_line(request, call.query["model"]) for request in requests]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        body = {
            "input_file_id": self._files.upload(
                {"file": ("input.jsonl", content), "purpose": "batch"}
            ).id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"display_name": batch["display_name"]},
        }
        return self._operation_reply(await super()._create_batch(replace(call, body=body)))

    async def _retrieve_batch(self, call: Call) -> Reply:
        return self._operation_reply(await super()._retrieve_batch(call))

    async def _cancel_batch(self, call: Call) -> Reply:
        await super()._cancel_batch(call)
        return as_json({})

    async def _list_batches(self, call: Call) -> Reply:
        """Newest first; the token of a page is the last batch of the page before."""
        query: JsonObject = {"limit": call.query.get("pageSize", "20")}
        if token := call.query.get("pageToken"):
            query["after"] = token
        page = self._batches.list(query)
        operations = {"operations": [self._operation(batch) for batch in page["data"]]}
        more = {"nextPageToken": page["last_id"]} if page["has_more"] else {}
        return as_json({**operations, **more})

    def _operation_reply(self, reply: Reply) -> Reply:
        return as_json(self._operation(json.loads(reply.parts[0])))

    def _operation(self, batch: JsonObject) -> JsonObject:
        state = f"BATCH_STATE_{_STATES.get(batch['status'], 'RUNNING')}"
        about = {
            "displayName": batch["metadata"]["display_name"],
            "state": state,
            "createTime": datetime.fromtimestamp(batch["created_at"], UTC).isoformat(),
        }
        operation = {"name": f"batches/{batch['id']}", "metadata": about}
        if batch["status"] == "failed":
            fault = batch["errors"]["data"][0]
            return {**operation, "done": True, "error": {"code": 3, "message": fault["message"]}}
        if batch["status"] not in TERMINAL:
            return operation
        results = [] if batch["status"] == "expired" else list(self._results(batch))
        response = {"inlinedResponses": {"inlinedResponses": results}}
        return {**operation, "done": True, "response": response}

    def _results(self, batch: JsonObject) -> Iterator[JsonObject]:
        for name in ("output_file_id", "error_file_id"):
            if batch[name]:
                for line in self._files.find(batch[name]).content.splitlines():
                    yield _result(json.loads(line))


def _with_google_errors(handler: Any) -> WebHandler:
    """The handler with its error responses in Google's form."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if isinstance(response, web.Response) and response.status >= 400 and response.text:
            message = json.loads(response.text)["error"]["message"]
            status = _STATUSES.get(response.status, "INTERNAL")
            error = {"code": response.status, "message": message, "status": status}
            response.text = json.dumps({"error": error})
        return response

    return serve


def _openai_line(inlined: JsonObject, model: str) -> JsonObject:
    line = {"method": "POST", "url": "/v1/chat/completions"}
    body = {**_openai_body(inlined["request"]), "model": model}
    return {**line, "custom_id": inlined["metadata"]["key"], "body": body}


def _openai_body(request: JsonObject) -> JsonObject:
    """The request in OpenAI's form, with the parameters that the simulated model uses."""
    system = request.get("system_instruction")
    messages = [{"role": "system", "content": _text(system)}] if system else []
    for content in request["contents"]:
        role = "assistant" if content["role"] == "model" else "user"
        messages.append({"role": role, "content": _text(content)})
    body: JsonObject = {"messages": messages}
    options = request.get("generationConfig") or {}
    for name, openai_name in {
        "max_output_tokens": "max_tokens",
        "temperature": "temperature",
    }.items():
        if name in options:
            body[openai_name] = options[name]
    return body


def _text(content: JsonObject) -> str:
    return "".join(part.get("text", "") for part in content["parts"])


def _result(line: JsonObject) -> JsonObject:
    result: JsonObject = {"metadata": {"key": line["custom_id"]}}
    response, error = line["response"], line["error"]
    if response and response["status_code"] == 200:
        return {**result, "response": _answer(response["body"])}
    status = response["status_code"] if response else 499
    cause = error or response["body"].get("error") or {"message": "Internal error"}
    code = _CODES.get(status, 13)
    return {**result, "error": {"code": code, "message": cause["message"]}}


def _answer(body: JsonObject) -> JsonObject:
    choice, usage = body["choices"][0], body["usage"]
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": choice["message"]["content"]}]},
                "finishReason": _FINISH_REASONS[choice["finish_reason"]],
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": usage["prompt_tokens"],
            "candidatesTokenCount": usage["completion_tokens"],
            "totalTokenCount": usage["total_tokens"],
        },
        "modelVersion": body["model"],
        "responseId": body["id"],
    }
