"""Executes the lines of a batch and writes its two result files."""

import json
from collections.abc import Callable
from typing import Any

from workers.onebox.simulator.errors import ApiError, JsonObject
from workers.onebox.simulator.faults import error_of
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.script import merged
from workers.onebox.simulator.tokens import Usage
from workers.onebox.simulator.validation import BatchLine

_UNEXECUTED_MESSAGES = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
}


class Results:
    """The result lines of one batch so far.

    `output` has the successful lines, `errors` all others. `completed` and `failed` count executed
    requests, however a fault rule then changed their lines.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.output: list[bytes] = []
        self.errors: list[bytes] = []
        self.completed = 0
        self.failed = 0
        self.usage = Usage(0, 0)

    def execute(self, line: BatchLine) -> None:
        """Answer and charge one request, or let it fail without a charge."""
        body = line.body()
        subject = line.subject("line", body["model"])
        fault = self._provider.faults.pick(subject)
        write = self._writer(fault)
        if fault is not None and (fault.status is not None or fault.code is not None):
            self.failed += 1
            write(self.errors, self._failure(line, fault))
            return
        script = self._provider.scripts.pick(subject)
        if script is not None and script.is_error:
            self.failed += 1
            error = ApiError(script.status or 500, "Scripted error.").body()
            failure = self._response(line, script.status or 500, script.applied(error))
            self.errors.append(_encode(merged(failure, script.record)))
            return
        try:
            answer = self._provider.answer(line.endpoint, body)
        except ApiError as error:
            self.failed += 1
            write(self.errors, self._response(line, error.status, error.body()))
            return
        self.completed += 1
        self.usage = Usage(*map(sum, zip(self.usage, answer.usage, strict=True)))
        record = self._response(line, 200, self._provider.respond(answer, "batch", script))
        write(self.output, merged(record, script.record) if script is not None else record)
        if fault is not None and fault.write == "both":
            failure = {"code": "server_error", "message": fault.message}
            self.errors.append(_encode(self._record(line, None, failure)))

    def add_unexecuted(self, line: BatchLine, code: str) -> None:
        """Record a request that was not executed; it costs nothing and does not count as failed."""
        error = {"code": code, "message": _UNEXECUTED_MESSAGES[code]}
        self.errors.append(_encode(self._record(line, None, error)))

    def _failure(self, line: BatchLine, fault: Fault) -> JsonObject:
        if fault.status is None:
            return self._record(line, None, {"code": fault.code, "message": fault.message})
        if fault.status == 0:
            response = {"status_code": 0, "request_id": "", "body": {}}
            return self._record(line, response, None)
        return self._response(line, fault.status, error_of(fault, fault.status).body())

    def _response(self, line: BatchLine, status: int, body: Any) -> JsonObject:
        request_id = self._provider.ids.new("req_")
        response = {"status_code": status, "request_id": request_id, "body": body}
        return self._record(line, response, None)

    def _record(
        self, line: BatchLine, response: JsonObject | None, error: JsonObject | None
    ) -> JsonObject:
        return {
            "id": self._provider.ids.new("batch_req_"),
            "custom_id": line.custom_id,
            "response": response,
            "error": error,
        }

    def _writer(self, fault: Fault | None) -> Callable[[list[bytes], JsonObject], None]:
        return _WRITERS[fault.write if fault is not None else None]


def _write(file: list[bytes], record: JsonObject) -> None:
    file.append(_encode(record))


def _write_nothing(file: list[bytes], record: JsonObject) -> None:
    """The line is lost."""


def _write_twice(file: list[bytes], record: JsonObject) -> None:
    file += [_encode(record)] * 2


def _write_half(file: list[bytes], record: JsonObject) -> None:
    line = _encode(record)
    file.append(line[: len(line) // 2] + b"\n")


def _write_unknown_too(file: list[bytes], record: JsonObject) -> None:
    file += [_encode(record), _encode({**record, "custom_id": f"unknown-{record['id']}"})]


def _write_as_text(file: list[bytes], record: JsonObject) -> None:
    file.append(_encode(_with_body(record, json.dumps(record["response"]["body"]))))


def _write_error_body(file: list[bytes], record: JsonObject) -> None:
    error = {"message": "Something went wrong.", "type": "server_error"}
    file.append(_encode(_with_body(record, {"error": error})))


def _write_refusal(file: list[bytes], record: JsonObject) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    file.append(_encode(_with_choice(record, message=message)))


def _write_filtered(file: list[bytes], record: JsonObject) -> None:
    message = {"role": "assistant", "content": "", "refusal": None}
    file.append(_encode(_with_choice(record, message=message, finish_reason="content_filter")))


def _with_choice(record: JsonObject, **parts: object) -> JsonObject:
    body = record["response"]["body"]
    return _with_body(record, {**body, "choices": [{**body["choices"][0], **parts}]})


def _with_body(record: JsonObject, body: object) -> JsonObject:
    return {**record, "response": {**record["response"], "body": body}}


_WRITERS: dict[str | None, Callable[[list[bytes], JsonObject], None]] = {
    None: _write,
    "missing": _write_nothing,
    "duplicate": _write_twice,
    "corrupt": _write_half,
    "unknown": _write_unknown_too,
    "both": _write,
    "as_text": _write_as_text,
    "error_body": _write_error_body,
    "refusal": _write_refusal,
    "filtered": _write_filtered,
}


def _encode(record: JsonObject) -> bytes:
    return json.dumps(record).encode() + b"\n"
