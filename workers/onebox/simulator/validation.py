"""OpenAI's checks of a batch's input file before any line is executed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from workers.onebox.simulator.errors import ApiError, JsonObject
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.provider import ENDPOINTS, Provider
from workers.onebox.simulator.rule import Endpoint, Scope, Subject

_MAX_ERRORS = 100  # OpenAI documents no number


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line of an input file, as received."""

    custom_id: str
    endpoint: Endpoint
    raw: bytes

    def body(self) -> JsonObject:
        """The request body of the line."""
        body: JsonObject = json.loads(self.raw)["body"]
        return body

    def subject(self, scope: Scope, model: str | None) -> Subject:
        """The line as rules see it."""
        return Subject(scope, self.endpoint, model, self.raw, self.body)


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """A checked input file; it can be executed if there are no `errors`."""

    lines: list[BatchLine]
    model: str | None
    errors: list[JsonObject]


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def batch_error(
    code: str, message: str, param: str | None = None, line: int | None = None
) -> JsonObject:
    """One entry of a batch's `errors.data`; `line` counts from 1."""
    return {"code": code, "message": message, "param": param, "line": line}


def check(content: bytes, url: str, profile: Profile) -> CheckedInput:
    """Check every line against the other lines, the batch's `url` and the profile."""
    checker = _Checker(url, profile)
    limit = profile.batch.max_requests
    total = sum(1 for _ in _lines(content))
    if total == 0:
        return CheckedInput([], None, [batch_error("empty_file", "The input file is empty.")])
    if total > limit:
        text = f"The batch has {total} requests, more than the limit of {limit}."
        return CheckedInput([], None, [batch_error("too_many_tasks", text)])
    for number, line in _lines(content):
        checker.add(number, line)
    return checker.result()


def enqueued_tokens(checked: CheckedInput, provider: Provider) -> int:
    """The prompt tokens of all requests; a request that will fail has none."""
    total = 0
    for line in checked.lines:
        try:
            total += provider.answer(line.endpoint, line.body()).usage.input_tokens
        except ApiError:
            continue
    return total


class _Checker:
    def __init__(self, url: str, profile: Profile) -> None:
        self._url = url
        self._profile = profile
        self._model: str | None = None
        self._ids: set[str] = set()
        self._inputs = 0
        self._batch_lines: list[BatchLine] = []
        self._errors: list[JsonObject] = []

    def add(self, number: int, raw: bytes) -> None:
        try:
            line = _parse(raw)
            self._check_id(line)
            self._check_target(line)
            self._check_body(line["body"])
        except _LineError as error:
            if len(self._errors) < _MAX_ERRORS:
                self._errors.append(batch_error(error.code, str(error), error.param, number))
            return
        self._batch_lines.append(BatchLine(line["custom_id"], ENDPOINTS[self._url], raw))

    def result(self) -> CheckedInput:
        limit = self._profile.batch.max_embedding_inputs
        if not self._errors and self._inputs > limit:
            text = f"The batch has {self._inputs} embedding inputs, more than {limit}."
            self._errors.append(batch_error("too_many_embedding_inputs", text))
        return CheckedInput(self._batch_lines, self._model, self._errors)

    def _check_id(self, line: JsonObject) -> None:
        custom_id = _field(line, "custom_id", str)
        if custom_id in self._ids:
            text = (
                f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise _LineError("duplicate_custom_id", text, "custom_id")
        self._ids.add(custom_id)

    def _check_target(self, line: JsonObject) -> None:
        if _field(line, "method", str) != "POST":
            raise _LineError("invalid_method", "The only supported method is POST.", "method")
        url = _field(line, "url", str)
        if url not in ENDPOINTS:
            raise _LineError("invalid_url", f"The URL '{url}' is not supported.", "url")
        if url != self._url:
            text = f"The URL '{url}' does not match the batch endpoint '{self._url}'."
            raise _LineError("url_mismatch", text, "url")
        _field(line, "body", dict)

    def _check_body(self, body: JsonObject) -> None:
        model = body.get("model")
        if not isinstance(model, str):
            _missing("body.model")
        if self._profile.models and model not in self._profile.models:
            text = f"The provided model '{model}' is not supported by the Batch API."
            raise _LineError("model_not_found", text, "body.model")
        self._model = self._model or model
        if model != self._model:
            text = (
                f"The model '{model}' differs from '{self._model}': the input file can only "
                "include requests to a single model."
            )
            raise _LineError("model_mismatch", text, "body.model")
        if body.get("stream"):
            raise _LineError("invalid_request", "A batch cannot stream.", "body.stream")
        if self._url == "/v1/embeddings":
            self._inputs += _embedding_inputs(body.get("input"))


def _embedding_inputs(value: Any) -> int:
    is_token_ids = isinstance(value, list) and value and isinstance(value[0], int)
    return len(value) if isinstance(value, list) and not is_token_ids else 1


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    # Not splitlines(): JSON text can contain other line separators than the newline.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _parse(raw: bytes) -> JsonObject:
    try:
        # Decode first: json.loads would guess other encodings and accept a byte order mark.
        line = json.loads(raw.decode("utf-8"), parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise _LineError("invalid_json_line", "This line is not parseable as valid JSON.")
    return line


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _field(line: JsonObject, name: str, kind: type) -> Any:
    value = line.get(name)
    if value is None:
        _missing(name)
    if not isinstance(value, kind):
        raise _LineError("invalid_type", f"Invalid type for '{name}'.", name)
    return value


def _missing(name: str) -> NoReturn:
    text = f"Missing required parameter: '{name}'."
    raise _LineError("missing_required_parameter", text, name)
