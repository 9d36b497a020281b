"""Azure OpenAI's variant of the API: its paths, keys, errors and files.

The routes are under /openai/v1, where `api-version` is optional, and under /openai, where it is
required. As on Azure, the id of a batch's missing file is "", a completed batch without errors has
an empty error file, and the `endpoint` of a new batch is ignored.

Not simulated: Entra ID, blobs and content filters that block. Azure does not document its error for
batch metadata; here it is a 400.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

from aiohttp import web

from workers.onebox.simulator.app import App
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid
from workers.onebox.simulator.files import File
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.transport import Call, Reply, as_json

_DAY = 86_400
_V1 = "/openai/v1"
_SAFE = {"hate": {"filtered": False, "severity": "safe"}}


class AzureApp(App):
    """An Azure resource; uploads take `processing` seconds until a batch can use them."""

    def __init__(self, provider: Provider, processing: float = 0.0) -> None:
        self._processing = processing
        super().__init__(provider)

    def reset(self) -> None:
        """Delete the ids of empty error files too."""
        super().reset()
        #: Ids of empty error files by batch id.
        self._empty_error_files: dict[str, str] = {}

    def _routes(self) -> Iterator[web.RouteDef]:
        for route in super()._routes():
            path = route.path.removeprefix("/v1")
            yield web.route(route.method, _V1 + path, route.handler)
            yield web.route(route.method, "/openai" + path, route.handler)
            if path == "/chat/completions":
                classic = "/openai/deployments/{deployment}" + path
                yield web.route(route.method, classic, route.handler)

    def _authorize(self, request: web.Request) -> None:
        key = request.headers.get("api-key", "")
        if request.path.startswith(_V1):
            key = key or request.headers.get("Authorization", "").removeprefix("Bearer ")
        elif not request.query.get("api-version"):
            raise ApiError(404, "Resource not found", code="404")
        accepted = self.provider.profile.api_keys
        if not key or (accepted and key not in accepted):
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise ApiError(401, text, code="401")

    async def _create_file(self, call: Call) -> Reply:
        policy = call.body.get("expires_after") or {"seconds": 14 * _DAY}
        if not 14 * _DAY <= int(policy["seconds"]) <= 30 * _DAY:
            raise invalid("expires_after.seconds must be from 1209600 to 2592000.", None)
        file = self._files.upload(call.body)
        return as_json(self._file_json(file))

    async def _retrieve_file(self, call: Call) -> Reply:
        return as_json(self._file_json(_with_azure_lines(self._files.find(call.query["id"]))))

    async def _file_content(self, call: Call) -> Reply:
        file = _with_azure_lines(self._files.find(call.query["id"]))
        return Reply((file.content,), "application/octet-stream")

    async def _create_batch(self, call: Call) -> Reply:
        if call.body.get("metadata"):
            raise invalid("Unsupported parameter: metadata.", "metadata")
        file = self._files.find(str(call.body.get("input_file_id")))
        if self._is_pending(file):
            raise invalid(f"The file {file.id} is not processed.", "input_file_id")
        chat_call = replace(call, body={**call.body, "endpoint": "/v1/chat/completions"})
        return self._azure_reply(await super()._create_batch(chat_call))

    async def _retrieve_batch(self, call: Call) -> Reply:
        return self._azure_reply(await super()._retrieve_batch(call))

    async def _cancel_batch(self, call: Call) -> Reply:
        return self._azure_reply(await super()._cancel_batch(call))

    async def _list_batches(self, call: Call) -> Reply:
        page = json.loads((await super()._list_batches(call)).parts[0])
        return as_json({**page, "data": [self._azure_batch(batch) for batch in page["data"]]})

    def _azure_reply(self, reply: Reply) -> Reply:
        return as_json(self._azure_batch(json.loads(reply.parts[0])))

    def _azure_batch(self, batch: JsonObject) -> JsonObject:
        ended = batch["status"] == "completed"
        errors = batch["error_file_id"] or (self._empty_file(batch["id"]) if ended else "")
        counts = batch["request_counts"] if ended else dict.fromkeys(batch["request_counts"])
        return {
            **batch,
            "endpoint": None,
            "metadata": None,
            "output_file_id": batch["output_file_id"] or "",
            "error_file_id": errors,
            "request_counts": counts,
        }

    def _empty_file(self, batch_id: str) -> str:
        if batch_id not in self._empty_error_files:
            now = self.provider.clock.now()
            file = self._files.add_result(f"{batch_id}_error.jsonl", b"", now, None)
            self._empty_error_files[batch_id] = file.id
        return self._empty_error_files[batch_id]

    def _file_json(self, file: File) -> JsonObject:
        return {**file.as_json(), "status": "pending" if self._is_pending(file) else "processed"}

    def _is_pending(self, file: File) -> bool:
        return self.provider.clock.now() < file.created_at + self._processing


def _with_azure_lines(file: File) -> File:
    """A result file as Azure writes it: lines without ids, answers with filter results."""
    if file.purpose != "batch_output":
        return file
    return replace(file, content=b"".join(map(_azure_line, file.content.splitlines(keepends=True))))


def _azure_line(raw: bytes) -> bytes:
    try:
        line: JsonObject = json.loads(raw)
    except ValueError:  # corrupted by a fault rule
        return raw
    del line["id"]
    body = (line["response"] or {}).get("body")
    for choice in body.get("choices", []) if isinstance(body, dict) else []:
        choice["content_filter_results"] = _SAFE
    return json.dumps(line).encode() + b"\n"
