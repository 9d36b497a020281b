"""Executes the lines of a batch and writes its two result files."""

import json
from collections.abc import Callable

from workers.onebox.simulator.error import ApiError, JsonObject
from workers.onebox.simulator.faults import refusal
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.tokens import Usage
from workers.onebox.simulator.validation import Request

_UNFINISHED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
}


class Results:
    """The lines of one batch so far.

    `output` has the successful ones and only those; `errors` the others. The counts are of
    requests executed, whatever a fault rule then made of their lines.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.output: list[bytes] = []
        self.errors: list[bytes] = []
        self.completed = 0
        self.failed = 0
        self.usage = Usage(0, 0)

    def execute(self, request: Request) -> None:
        """Answer and charge one request, or fail it free of charge."""
        body = request.body()
        fault = self._provider.faults.pick("line", request.endpoint, body["model"], request.raw)
        write = self._writer(fault)
        if fault is not None and (fault.status is not None or fault.code is not None):
            self.failed += 1
            write(self.errors, self._failed(request, fault))
            return
        try:
            answer = self._provider.answer(request.endpoint, body)
        except ApiError as error:
            self.failed += 1
            write(self.errors, self._responded(request, error.status, error.body()))
            return
        self._provider.charge(answer, "batch")
        self.completed += 1
        self.usage = Usage(*map(sum, zip(self.usage, answer.usage, strict=True)))
        write(self.output, self._responded(request, 200, self._provider.write(answer)))
        if fault is not None and fault.write == "both":
            failure = {"code": "server_error", "message": fault.message}
            self.errors.append(_line(self._record(request, None, failure)))

    def give_up(self, request: Request, code: str) -> None:
        """Note a request that was never executed; it costs nothing and is not counted as failed."""
        error = {"code": code, "message": _UNFINISHED[code]}
        self.errors.append(_line(self._record(request, None, error)))

    def _failed(self, request: Request, fault: Fault) -> JsonObject:
        if fault.status is None:
            return self._record(request, None, {"code": fault.code, "message": fault.message})
        if fault.status == 0:
            response = {"status_code": 0, "request_id": "", "body": {}}
            return self._record(request, response, None)
        return self._responded(request, fault.status, refusal(fault, fault.status).body())

    def _responded(self, request: Request, status: int, body: JsonObject) -> JsonObject:
        request_id = self._provider.ids.new("req_")
        response = {"status_code": status, "request_id": request_id, "body": body}
        return self._record(request, response, None)

    def _record(
        self, request: Request, response: JsonObject | None, error: JsonObject | None
    ) -> JsonObject:
        return {
            "id": self._provider.ids.new("batch_req_"),
            "custom_id": request.custom_id,
            "response": response,
            "error": error,
        }

    def _writer(self, fault: Fault | None) -> Callable[[list[bytes], JsonObject], None]:
        return _WRITERS[fault.write if fault is not None else None]


def _plainly(file: list[bytes], record: JsonObject) -> None:
    file.append(_line(record))


def _not_at_all(file: list[bytes], record: JsonObject) -> None:
    """A line that gets lost."""


def _twice(file: list[bytes], record: JsonObject) -> None:
    file += [_line(record)] * 2


def _cut_short(file: list[bytes], record: JsonObject) -> None:
    line = _line(record)
    file.append(line[: len(line) // 2] + b"\n")


def _with_a_stranger(file: list[bytes], record: JsonObject) -> None:
    file += [_line(record), _line({**record, "custom_id": f"unknown-{record['id']}"})]


def _as_text(file: list[bytes], record: JsonObject) -> None:
    file.append(_line(_with_body(record, json.dumps(record["response"]["body"]))))


def _as_an_error(file: list[bytes], record: JsonObject) -> None:
    error = {"message": "Something went wrong.", "type": "server_error"}
    file.append(_line(_with_body(record, {"error": error})))


def _refusing(file: list[bytes], record: JsonObject) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    file.append(_line(_with_choice(record, message=message)))


def _filtered(file: list[bytes], record: JsonObject) -> None:
    message = {"role": "assistant", "content": "", "refusal": None}
    file.append(_line(_with_choice(record, message=message, finish_reason="content_filter")))


def _with_choice(record: JsonObject, **parts: object) -> JsonObject:
    body = record["response"]["body"]
    return _with_body(record, {**body, "choices": [{**body["choices"][0], **parts}]})


def _with_body(record: JsonObject, body: object) -> JsonObject:
    return {**record, "response": {**record["response"], "body": body}}


_WRITERS: dict[str | None, Callable[[list[bytes], JsonObject], None]] = {
    None: _plainly,
    "missing": _not_at_all,
    "duplicate": _twice,
    "corrupt": _cut_short,
    "unknown": _with_a_stranger,
    "both": _plainly,
    "as_text": _as_text,
    "error_body": _as_an_error,
    "refusal": _refusing,
    "filtered": _filtered,
}


def _line(record: JsonObject) -> bytes:
    return json.dumps(record).encode() + b"\n"
