"""What OpenAI checks in the input file of a batch before any line is executed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from workers.onebox.simulator.error import ApiError, JsonObject
from workers.onebox.simulator.profile import Endpoint, Profile
from workers.onebox.simulator.provider import ENDPOINTS, Provider

_MOST_ERRORS = 100  # OpenAI gives no number


@dataclass(frozen=True, slots=True)
class Request:
    """One line of an input file, as it was sent."""

    custom_id: str
    endpoint: Endpoint
    raw: bytes

    def body(self) -> JsonObject:
        """The request body."""
        body: JsonObject = json.loads(self.raw)["body"]
        return body


@dataclass(frozen=True, slots=True)
class Input:
    """An input file read: without `errors` it can be executed."""

    requests: list[Request]
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


def read(content: bytes, url: str, profile: Profile) -> Input:
    """Check every line against the others, the batch's `url` and the profile."""
    reader = _Reader(url, profile)
    limit = profile.batch.max_requests
    total = sum(1 for _ in _lines(content))
    if total == 0:
        return Input([], None, [batch_error("empty_file", "The input file is empty.")])
    if total > limit:
        text = f"The batch has {total} requests, more than the limit of {limit}."
        return Input([], None, [batch_error("too_many_tasks", text)])
    for number, line in _lines(content):
        reader.add(number, line)
    return reader.result()


def enqueued_tokens(found: Input, provider: Provider) -> int:
    """Prompt tokens of all requests; one that will be refused counts nothing."""
    total = 0
    for request in found.requests:
        try:
            total += provider.answer(request.endpoint, request.body()).usage.input_tokens
        except ApiError:
            continue
    return total


class _Reader:
    def __init__(self, url: str, profile: Profile) -> None:
        self._url = url
        self._profile = profile
        self._model: str | None = None
        self._ids: set[str] = set()
        self._inputs = 0
        self._requests: list[Request] = []
        self._errors: list[JsonObject] = []

    def add(self, number: int, raw: bytes) -> None:
        try:
            line = _parse(raw)
            self._check_id(line)
            self._check_target(line)
            self._check_body(line["body"])
        except _LineError as error:
            if len(self._errors) < _MOST_ERRORS:
                self._errors.append(batch_error(error.code, str(error), error.param, number))
            return
        self._requests.append(Request(line["custom_id"], ENDPOINTS[self._url], raw))

    def result(self) -> Input:
        limit = self._profile.batch.max_embedding_inputs
        if not self._errors and self._inputs > limit:
            text = f"The batch has {self._inputs} embedding inputs, more than {limit}."
            self._errors.append(batch_error("too_many_embedding_inputs", text))
        return Input(self._requests, self._model, self._errors)

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
    # Not splitlines(): only a newline ends a line, and JSON text may hold other separators.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _parse(raw: bytes) -> JsonObject:
    try:
        # Decoded first: json.loads would guess other encodings and accept a byte order mark.
        line = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise _LineError("invalid_json_line", "This line is not parseable as valid JSON.")
    return line


def _refuse_constant(name: str) -> NoReturn:
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
