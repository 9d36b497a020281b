"""How the lines of result files are decoded, and how the lines of input files are encoded."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primarch_fleet import errors
from scheduler.model import jsonl
from scheduler.model.outcomes import LineAnswered, LineHeld, LineRefused, LineRetry
from scheduler.providers.result_lines import BadLine, decode_line

BODY = {"id": "chatcmpl-1", "choices": [{"index": 0, "finish_reason": "stop"}]}


def line(response: Any = None, error: Any = None) -> str:
    return json.dumps({"id": "b", "custom_id": "r-1-1", "response": response, "error": error})


def answer(status: int, **error: Any) -> str:
    return line({"status_code": status, "request_id": "", "body": {"error": error}})


def test_a_response_has_status_200_a_body_and_no_error() -> None:
    assert decode_line(line({"status_code": 200, "body": BODY})).outcome == LineAnswered(BODY)


def test_a_body_encoded_as_json_text_is_a_response_too() -> None:
    response = {"status_code": 200, "body": json.dumps(BODY)}
    assert decode_line(line(response)).outcome == LineAnswered(BODY)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]},
        {"choices": [{"message": {"content": "An"}, "finish_reason": "length"}]},
        {"object": "response", "status": "incomplete", "error": None, "output": []},
    ],
)
def test_a_response_that_is_refused_filtered_or_truncated_is_unchanged(body: Any) -> None:
    assert decode_line(line({"status_code": 200, "body": body})).outcome == LineAnswered(body)


def test_a_line_without_response_and_error_is_retried() -> None:
    outcome = decode_line('{"custom_id": "r-1-1"}').outcome
    assert isinstance(outcome, LineRetry)


FAILED = {"choices": [{"message": {"content": "An"}, "finish_reason": "error"}]}
RETRIES = [
    (line({"status_code": 0, "request_id": "", "body": {}}), errors.ProviderUnavailable),
    (line({"status_code": 200, "body": {}}), errors.ProviderUnavailable),
    (answer(408, message="m"), errors.ProviderTimeout),
    (answer(409, message="m"), errors.ProviderUnavailable),
    (answer(429, message="m"), errors.RateLimited),
    (answer(500, message="m"), errors.ProviderUnavailable),
    (answer(503, message="m"), errors.ProviderUnavailable),
    (line(error={"code": "request_timeout", "message": "m"}), errors.ProviderTimeout),
    (line(error={"code": "something_new", "message": "m"}), errors.ProviderUnavailable),
    (answer(200, message="m"), errors.ProviderUnavailable),
    (line({"status_code": 200, "body": "no json"}), errors.ProviderUnavailable),
    (line({"status_code": 200, "body": BODY}, "words"), errors.ProviderUnavailable),
    (line({"status_code": 200, "body": FAILED}), errors.ProviderUnavailable),
]


@pytest.mark.parametrize(("text", "error"), RETRIES)
def test_a_temporary_error_is_retried(text: str, error: type[Exception]) -> None:
    outcome = decode_line(text).outcome
    assert isinstance(outcome, LineRetry)
    assert type(outcome.error) is error
    assert outcome.counter == "failures"


@pytest.mark.parametrize("code", ["batch_expired", "batch_cancelled"])
def test_a_request_that_was_not_executed_is_counted_as_an_expiry(code: str) -> None:
    outcome = decode_line(line(error={"code": code, "message": "m"})).outcome
    assert isinstance(outcome, LineRetry)
    assert outcome.counter == "expiries"


REFUSALS = [
    (answer(400, message="m"), errors.ProviderError),
    (answer(404, message="m", code="model_not_found"), errors.ProviderError),
    (answer(422, message="m"), errors.ProviderError),
    (answer(400, message="m", code="context_length_exceeded"), errors.ContextWindowExceeded),
    (answer(400, message="the maximum context length is 8"), errors.ContextWindowExceeded),
    (answer(400, message="m", code="content_policy_violation"), errors.ContentPolicyViolation),
]


@pytest.mark.parametrize(("text", "error"), REFUSALS)
def test_a_permanent_error_is_refused(text: str, error: type[Exception]) -> None:
    outcome = decode_line(text).outcome
    assert isinstance(outcome, LineRefused)
    assert type(outcome.error) is error


HELD = [
    (answer(401, message="m"), errors.AuthenticationFailed),
    (answer(403, message="m"), errors.AuthenticationFailed),
    (answer(402, message="m"), errors.AccountUnavailable),
    (answer(400, message="m", code="billing_hard_limit_reached"), errors.AccountUnavailable),
    (answer(429, message="m", code="insufficient_quota"), errors.AccountUnavailable),
]


@pytest.mark.parametrize(("text", "error"), HELD)
def test_an_error_of_the_account_holds_the_request(text: str, error: type[Exception]) -> None:
    outcome = decode_line(text).outcome
    assert isinstance(outcome, LineHeld)
    assert type(outcome.fault.error()) is error


def test_the_error_has_the_providers_message() -> None:
    outcome = decode_line(answer(400, message="No such thing.")).outcome
    assert isinstance(outcome, LineRefused)
    assert str(outcome.error) == "No such thing."


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "{}", '{"custom_id": 1}', b"\xff\xfe"])
def test_a_line_that_is_no_result_raises_bad_line(text: str | bytes) -> None:
    with pytest.raises(BadLine):
        decode_line(text)


keys = st.sampled_from(["status_code", "body", "error", "code", "message"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
)


@given(json_values, json_values)
def test_any_line_with_a_custom_id_is_decoded(response: Any, error: Any) -> None:
    assert decode_line(line(response, error)).custom_id == "r-1-1"


@given(st.text(), st.integers(1, 9999))
def test_any_task_id_becomes_a_custom_id_that_every_provider_accepts(
    task_id: str, attempt: int
) -> None:
    request = jsonl.request_id(task_id)
    custom_id = jsonl.custom_id(request, attempt)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", custom_id)
    assert jsonl.request_of(custom_id) == request


@pytest.mark.parametrize("custom_id", ["", "unknown-1", "r-1", "x-1-1", "r-1-1-1"])
def test_a_foreign_custom_id_has_no_request(custom_id: str) -> None:
    assert jsonl.request_of(custom_id) is None


def test_an_encoded_line_is_one_line_of_ascii() -> None:
    line = {
        "custom_id": "r-1-1",
        "body": {"text": "two\nlines\u2028, \u00fcn\u00ef and \U0001f600"},
    }
    encoded = jsonl.encode(line)
    assert encoded.isascii()
    assert (encoded.count(b"\n"), len(encoded.decode().splitlines())) == (1, 1)
    assert json.loads(encoded) == line


def test_a_line_that_json_cannot_express_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        jsonl.encode({"temperature": float("nan")})


def test_a_request_id_is_a_hash_of_any_task_id() -> None:
    assert jsonl.request_id("a") == "27c35e6e9373877f29e562464e46497e"
    assert jsonl.request_id("\ud800") == "b4fe3de0239399efbfffc79686f435f9"
