"""Translates Gemini's results to OpenAI's form, as LiteLLM does. No network."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx

Json = dict[str, Any]

#: Google's codes of errors: the status, in lower case, and the HTTP status.
#: https://cloud.google.com/apis/design/errors
CODES = {
    1: ("batch_cancelled", 499),
    3: ("invalid_argument", 400),
    4: ("deadline_exceeded", 504),
    5: ("not_found", 404),
    7: ("permission_denied", 403),
    8: ("resource_exhausted", 429),
    9: ("failed_precondition", 400),
    13: ("internal", 500),
    14: ("unavailable", 503),
    16: ("unauthenticated", 401),
}


def inlined(operation: Json) -> list[Json]:
    """Return the results of a batch, each for one request; none before it has ended."""
    response = operation.get("response") or {}
    return list((response.get("inlinedResponses") or {}).get("inlinedResponses") or ())


def result_line(result: Json, created: int) -> Json:
    """Translate a result to a line of OpenAI's, as created at `created` (Unix seconds)."""
    custom_id = str((result.get("metadata") or {}).get("key") or "")
    error = result.get("error")
    if error:
        code, status = CODES.get(error.get("code") or 0, ("", 500))
        message = str(error.get("message") or "")
        response = {"status_code": status, "body": {"error": {"code": code, "message": message}}}
    else:
        response = _answered(result.get("response") or {}, custom_id, created)
    return {"custom_id": custom_id, "response": response, "error": None}


def _answered(answer: Json, custom_id: str, created: int) -> Json:
    try:
        body = _completion(answer)
    except Exception as error:  # the answer is paid, and a retry would cost again
        reason = f"the response cannot be translated: {type(error).__name__}"
        return {"status_code": 422, "body": {"error": {"message": reason}}}
    response_id = answer.get("responseId") or custom_id
    return {"status_code": 200, "body": {**body, "id": response_id, "created": created}}


def _completion(answer: Json) -> Json:
    litellm, config = _litellm()
    response = config.transform_response(
        model=str(answer.get("modelVersion") or ""),
        # LiteLLM needs a usage; without tokens in it, they are estimated.
        raw_response=httpx.Response(
            200, json={**answer, "usageMetadata": answer.get("usageMetadata") or {}}
        ),
        model_response=litellm.ModelResponse(),
        logging_obj=SimpleNamespace(
            post_call=lambda **_: None, optional_params={}, litellm_params={}
        ),
        request_data={},
        messages=[],
        optional_params={},
        litellm_params={},
        encoding=None,
    )
    body: Json = response.model_dump(mode="json", exclude_none=True)
    for choice in body["choices"]:
        choice["message"].setdefault("content", None)
    return body


@cache
def _litellm() -> tuple[Any, Any]:
    from workers.realtime.litellm_import import litellm  # noqa: PLC0415 - takes two seconds

    return litellm, litellm.GoogleAIStudioGeminiConfig()
