"""The classifier of provider errors, by the forms that providers really send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from primarch_fleet import errors
from tasks.failed_answers import fault_in_answer
from tasks.failure_reasons import MEANINGS, Category, Reason
from tasks.provider_error_tables import CODES
from tasks.provider_errors import Source, classify

INVALID, CONTEXT, POLICY = Reason.INVALID_REQUEST, Reason.CONTEXT_WINDOW, Reason.CONTENT_POLICY
MODEL, KEY, PERMISSION = Reason.MODEL_NOT_FOUND, Reason.CREDENTIALS, Reason.PERMISSION
BILLING, RATE, QUEUE = Reason.BILLING, Reason.RATE_LIMIT, Reason.QUEUE_FULL
FAILED = Reason.GENERATION_FAILED
TIMEOUT, DOWN, NOT_EXECUTED = Reason.TIMEOUT, Reason.UNAVAILABLE, Reason.NOT_EXECUTED


def openai(code: str | None, message: str = "m", kind: str = "invalid_request_error") -> Any:
    return {"message": message, "type": kind, "param": None, "code": code}


def anthropic(kind: str, message: str = "m") -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}}


def google(code: int, status: str, message: str = "m", reason: str = "") -> Any:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]
    error = {"code": code, "message": message, "status": status}
    return {"error": error | ({"details": details} if reason else {})}


def aws(kind: str, message: str = "m") -> Any:
    return {"__type": f"com.amazon.coral.service#{kind}", "message": message}


def openrouter(answer: Any) -> Any:
    raw = answer if isinstance(answer, str) else json.dumps(answer)
    metadata = {"raw": raw, "provider_name": "p"}
    return {"error": {"message": "Provider returned error", "code": 400, "metadata": metadata}}


def vllm(code: int, kind: str, message: str) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def xai(message: str) -> Any:
    return {"code": "The caller does not have permission", "error": message}


#: A LiteLLM proxy's.
BUDGET = openai("429", "Budget has been exceeded! Current cost: 1.0", "budget_exceeded")
QUOTA_TEXT = "You exceeded your current quota, please check your plan and billing details."
LENGTH_TEXT = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 tokens."
)
MODEL_TEXT = "The model `gpt-5` does not exist or you do not have access to it."

#: What is answered with a status: (status, error, reason).
ANSWERS: list[tuple[int, Any, Reason]] = [
    # OpenAI
    (400, openai("context_length_exceeded"), CONTEXT),
    (400, openai(None, LENGTH_TEXT), CONTEXT),
    (400, openai("string_above_max_length"), INVALID),
    (400, openai("unsupported_parameter"), INVALID),
    (400, openai("unsupported_value"), INVALID),
    (400, openai("invalid_image_format"), INVALID),
    (400, openai("image_content_policy_violation"), POLICY),
    (400, openai("content_policy_violation"), POLICY),
    (400, openai("a_code_of_tomorrow"), INVALID),
    (400, openai(None), INVALID),
    (400, openai("billing_hard_limit_reached"), BILLING),
    (400, openai(None, "Billing hard limit has been reached"), BILLING),
    (429, openai("billing_not_active", kind="billing_not_active"), BILLING),
    (429, openai("insufficient_quota", QUOTA_TEXT, "insufficient_quota"), BILLING),
    (429, openai(None, QUOTA_TEXT, "insufficient_quota"), BILLING),
    (429, openai(None, QUOTA_TEXT), BILLING),
    (429, openai("quota_exceeded"), BILLING),
    (429, openai("rate_limit_exceeded", kind="tokens"), RATE),
    (429, openai("rate_limit_exceeded", "Rate limit reached. Visit /account/billing.", "x"), RATE),
    (429, openai(None, kind="requests"), RATE),
    (429, None, RATE),
    (401, openai("invalid_api_key", "Incorrect API key provided: sk-***"), KEY),
    (401, openai("account_deactivated"), KEY),
    (400, openai("invalid_api_key"), KEY),
    (401, openai(None, "You must be a member of an organization to use the API."), PERMISSION),
    (403, openai("unsupported_country_region_territory"), PERMISSION),
    (403, openai(None, "Your organization must be verified to use the model `o3`."), PERMISSION),
    (400, openai(None, "Your organization must be verified to stream this model."), PERMISSION),
    (402, None, BILLING),
    (404, openai("model_not_found", MODEL_TEXT), MODEL),
    (403, openai(None, MODEL_TEXT), MODEL),
    (404, "Not Found", MODEL),
    (408, None, TIMEOUT),
    (409, openai(None), DOWN),
    (413, "Request Entity Too Large", INVALID),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, INVALID),
    (499, None, DOWN),
    (500, openai("server_error", kind="server_error"), DOWN),
    (503, None, DOWN),
    (520, "<html>", DOWN),
    (0, {}, DOWN),
    (400, openai(None, "No such File object: file-1"), INVALID),
    # Azure
    (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, MODEL),
    (429, {"error": {"code": "429", "message": "Rate limit is exceeded."}}, RATE),
    (429, {"error": {"code": "RateLimitReached", "message": "m"}}, RATE),
    (401, {"statusCode": 401, "message": "Access denied due to invalid subscription key"}, KEY),
    (
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Replenished in 9 days"},
        BILLING,
    ),
    (
        400,
        {
            "code": "content_filter",
            "status": 400,
            "message": "The response was filtered",
            "innererror": {"code": "ResponsibleAIPolicyViolation"},
        },
        POLICY,
    ),
    # Anthropic
    (400, anthropic("invalid_request_error", "max_tokens: required"), INVALID),
    (400, anthropic("invalid_request_error", "prompt is too long: 3 tokens > 2 maximum"), CONTEXT),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to use"), BILLING),
    (
        400,
        anthropic("invalid_request_error", "You reached your specified API usage limits"),
        BILLING,
    ),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), POLICY),
    (401, anthropic("authentication_error", "invalid x-api-key"), KEY),
    (402, anthropic("billing_error"), BILLING),
    (403, anthropic("permission_error"), PERMISSION),
    (404, anthropic("not_found_error", "model: claude-x"), MODEL),
    (413, anthropic("request_too_large"), INVALID),
    (429, anthropic("rate_limit_error"), RATE),
    (500, anthropic("api_error"), DOWN),
    (504, anthropic("timeout_error"), TIMEOUT),
    (529, anthropic("overloaded_error", "Overloaded"), DOWN),
    # Google
    (429, google(429, "RESOURCE_EXHAUSTED", QUOTA_TEXT), RATE),
    (400, google(400, "INVALID_ARGUMENT", "Invalid value at 'contents'"), INVALID),
    (400, google(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"), KEY),
    (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid one."), KEY),
    (
        400,
        google(400, "INVALID_ARGUMENT", "The input exceeds the maximum number of tokens allowed"),
        CONTEXT,
    ),
    (400, google(400, "FAILED_PRECONDITION", "Please enable billing on your project"), BILLING),
    (401, google(401, "UNAUTHENTICATED"), KEY),
    (403, google(403, "PERMISSION_DENIED"), PERMISSION),
    (403, google(403, "PERMISSION_DENIED", reason="BILLING_DISABLED"), BILLING),
    (404, google(404, "NOT_FOUND"), MODEL),
    (499, google(499, "CANCELLED"), DOWN),
    (500, google(500, "INTERNAL"), DOWN),
    (503, google(503, "UNAVAILABLE", "The model is overloaded."), DOWN),
    (504, google(504, "DEADLINE_EXCEEDED"), TIMEOUT),
    # Bedrock
    (400, aws("ValidationException"), INVALID),
    (400, aws("ValidationException", "Input is too long for requested model."), CONTEXT),
    (403, aws("AccessDeniedException"), PERMISSION),
    (403, aws("UnrecognizedClientException", "The security token included in the request is"), KEY),
    (400, aws("ServiceQuotaExceededException"), BILLING),
    (404, aws("ResourceNotFoundException"), MODEL),
    (408, aws("ModelTimeoutException"), TIMEOUT),
    (424, aws("ModelErrorException"), DOWN),
    (429, aws("ThrottlingException"), RATE),
    (429, aws("ModelNotReadyException"), RATE),
    (503, aws("ServiceUnavailableException"), DOWN),
    # vLLM
    (400, vllm(400, "BadRequestError", LENGTH_TEXT), CONTEXT),
    (400, vllm(400, "BadRequestError", "temperature must be non-negative"), INVALID),
    (404, vllm(404, "NotFoundError", "The model `x` does not exist."), MODEL),
    (500, vllm(500, "InternalServerError", "EngineCore died"), DOWN),
    (501, vllm(501, "NotImplementedError", "not supported"), INVALID),
    # Others
    (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, BILLING),
    (429, {"error": {"message": "m", "type": "exceeded_current_quota_error"}}, BILLING),
    (400, {"code": "Arrearage", "message": "your account is in good standing."}, BILLING),
    (403, {"error": "Your team has used all available credits"}, BILLING),
    (429, {"error": {"message": "m", "type": "engine_overloaded_error"}}, RATE),
    (498, None, RATE),
    (400, {"error": {"message": "m", "code": "model_decommissioned"}}, MODEL),
    (400, openai("json_validate_failed", "Failed to generate JSON."), FAILED),
    (400, openai("tool_use_failed", "Failed to call a function."), FAILED),
    (400, vllm(400, "invalid_model", "Invalid model: foo"), MODEL),
    (400, openai("invalid_request_error", "Model Not Exist"), MODEL),
    (400, {"error": {"message": "foo is not a valid model ID", "code": 400}}, MODEL),
    (400, aws("ValidationException", "The provided model identifier is invalid."), MODEL),
    (400, openai("invalid_request_error", "Content Exists Risk"), POLICY),
    (400, openai("invalid_prompt", "It was flagged as potentially violating our policy."), POLICY),
    (403, {"error": {"code": 403, "message": "Your input was flagged for 'violence'."}}, POLICY),
    (404, openai("previous_response_not_found", "Previous response not found."), INVALID),
    (400, google(400, "FAILED_PRECONDITION", "User location is not supported."), PERMISSION),
    (400, [google(400, "INVALID_ARGUMENT", "API key not valid.")], KEY),
    (400, openai(None, "This organization has been disabled."), PERMISSION),
    (429, {"error": {"code": "insufficientQuota", "message": "m"}}, BILLING),
    (400, {"error": {"code": "billing-hard-limit-reached", "message": "m"}}, BILLING),
    (400, openrouter({"error": {"message": LENGTH_TEXT}}), CONTEXT),
    (400, openrouter({"error": {"code": "content_policy_violation"}}), POLICY),
    (400, openrouter("overloaded"), INVALID),
    (413, {"error": "Input validation error: `inputs` must have less than 9 tokens."}, CONTEXT),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 2048."}, CONTEXT),
    (400, {"code": "x", "error": "This model's maximum prompt length is 9 tokens."}, CONTEXT),
    (400, {"message": "too many tokens: the prompt exceeds the limit of 4081"}, CONTEXT),
    (400, openai(None, "Your request exceeded model token limit: 8192"), CONTEXT),
    (400, openai(None, "Range of input length should be [1, 30720]"), CONTEXT),
    (400, vllm(400, "BadRequestError", "the model's context length is only 9 tokens"), CONTEXT),
    (400, "Current length is 9 while limit is 8", CONTEXT),
    (400, {"error": "prompt too long; exceeded max context length by 4 tokens"}, CONTEXT),
    (400, {"error": "the input length exceeds the context length"}, CONTEXT),
    (400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}, CONTEXT),
    (
        400,
        vllm(400, "BadRequestError", "Input length (9 tokens) exceeds the maximum allowed length"),
        CONTEXT,
    ),
    (400, openai(None, "The user's name exceeds the maximum allowed length"), INVALID),
    (400, {"error": "The model is loaded with context length of only 9 tokens."}, CONTEXT),
    (
        400,
        {"error_code": "BAD_REQUEST", "message": "prompt token count (9) cannot exceed 8."},
        CONTEXT,
    ),
    (403, xai("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"), POLICY),
    (400, openai("1301", "System detected potentially unsafe or sensitive content"), POLICY),
    (422, openai("content_moderation", "Input flagged"), POLICY),
    (400, aws("ValidationException", "Model x with on-demand throughput is not supported."), MODEL),
    # A lack of money, in all its forms
    (
        400,
        anthropic("invalid_request_error", "You reached your specified workspace API usage limits"),
        BILLING,
    ),
    (429, google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), BILLING),
    (429, google(429, "RESOURCE_EXHAUSTED", "It has exceeded its monthly spending cap."), BILLING),
    (412, openai("PRECONDITION_FAILED", "possibly due to the monthly spending limit"), BILLING),
    (400, openai("blocked_api_access", "Blocked: spend limit reached."), BILLING),
    (403, aws("AccessDeniedException", "denied due to INVALID_PAYMENT_INSTRUMENT:x"), BILLING),
    (403, {"error": {"message": "Key limit exceeded (total limit)", "code": 403}}, BILLING),
    (403, xai("Your newly created team doesn't have any credits or licenses yet."), BILLING),
    (403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "m"}, BILLING),
    (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, BILLING),
    (403, openai("AllocationQuota.FreeTierOnly", "The free tier is exhausted."), BILLING),
    (403, {"errors": [{"code": "token_quota_reached", "message": "m"}]}, BILLING),
    *((status, BUDGET, BILLING) for status in (400, 422, 429)),
    # Keys that fail before the call
    (500, "('invalid_grant: Invalid JWT Signature.', {'error': 'invalid_grant'})", KEY),
    (500, "Your default credentials were not found. To set up", KEY),
    (500, "Unable to load the vertex credentials file.", KEY),
    (500, "The config profile (x) could not be found", KEY),
    (500, "AADSTS7000215: Invalid client secret provided.", KEY),
    (500, "Missing Gemini API key. Set the GEMINI_API_KEY", KEY),
    (500, "A call is made, but no key is set either in the environment variables", KEY),
    (500, "Missing credentials. Please pass an `api_key`", KEY),
]


@pytest.mark.parametrize(("status", "error", "reason"), ANSWERS)
def test_an_answer_is_classified_by_its_most_specific_part(
    status: int, error: Any, reason: Reason
) -> None:
    assert classify(status, error).reason is reason


#: What comes without a status: (source, error, reason).
WITHOUT_STATUS: list[tuple[Source, Any, Reason]] = [
    ("line", {"code": "batch_expired", "message": "m"}, NOT_EXECUTED),
    ("line", {"code": "batch_cancelled"}, NOT_EXECUTED),
    ("line", {"code": "request_timeout"}, TIMEOUT),
    ("line", {"code": "context_length_exceeded"}, CONTEXT),
    ("line", {"code": "invalid_base64_image"}, INVALID),
    ("line", {"code": "server_error"}, DOWN),
    ("line", {"code": "a_code_of_tomorrow"}, Reason.UNKNOWN),
    ("line", "no", Reason.UNKNOWN),
    ("line", anthropic("overloaded_error"), DOWN),
    ("batch", {"code": "token_limit_exceeded"}, QUEUE),
    ("batch", {"message": "Enqueued token limit reached for gpt-4o."}, QUEUE),
    ("batch", {"code": "model_not_found"}, MODEL),
    ("batch", {"code": "billing_hard_limit_reached"}, BILLING),
    ("batch", {"code": "insufficient_quota"}, BILLING),
    ("batch", {"code": "invalid_json_line"}, INVALID),
    ("batch", {"code": "odd"}, Reason.UNKNOWN),
    ("batch", {"code": "TokenLimitExceeded"}, QUEUE),
    ("batch", {"code": "file_not_found"}, Reason.FILE_NOT_FOUND),
    ("line", {"code": "file_not_found"}, INVALID),
    (
        "batch",
        openai(
            "invalid_request",
            "Cannot find file file-1, or organization org-x does not have access to it.",
        ),
        Reason.FILE_NOT_FOUND,
    ),
    ("line", openai("invalid_request", "Cannot find file file-1, or project x"), INVALID),
]


@pytest.mark.parametrize(("source", "error", "reason"), WITHOUT_STATUS)
def test_an_error_without_a_status_is_classified_by_code_and_text(
    source: Source, error: Any, reason: Reason
) -> None:
    assert classify(None, error, source=source).reason is reason


@pytest.mark.parametrize(
    ("reason", "category", "kind"),
    [
        (INVALID, Category.REQUEST, errors.ProviderError),
        (CONTEXT, Category.REQUEST, errors.ContextWindowExceeded),
        (BILLING, Category.ACCOUNT, errors.AccountUnavailable),
        (KEY, Category.ACCOUNT, errors.AuthenticationFailed),
        (Reason.FILE_NOT_FOUND, Category.ACCOUNT, errors.AccountUnavailable),
        (RATE, Category.PROVIDER, errors.RateLimited),
        (Reason.UNKNOWN, Category.PROVIDER, errors.ProviderUnavailable),
    ],
)
def test_a_reason_has_a_category_and_an_error(
    reason: Reason, category: Category, kind: type[Exception]
) -> None:
    assert reason.category is category
    assert type(reason.error("m")) is kind


def test_every_reason_but_unknown_has_a_meaning_and_a_code_has_one_reason() -> None:
    assert set(MEANINGS) == set(Reason)
    codes = [code for text in CODES.values() for code in text.split()]
    assert len(codes) == len(set(codes))


def test_a_request_may_be_retried_unless_it_is_at_fault() -> None:
    for reason in Reason:
        retryable = type(reason.error("m")).retryable
        assert retryable == (not reason.is_permanent) or reason is NOT_EXECUTED


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (openai("x", "why"), "why"),
        ("plain", "plain"),
        (anthropic("api_error", "why"), "why"),
        ({"code": "batch_expired"}, "batch_expired"),
        (None, "HTTP 418 without an error message"),
    ],
)
def test_the_message_is_the_providers(error: Any, message: str) -> None:
    assert classify(418, error).message == message


def chat(finish_reason: Any, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": finish_reason, **fields}
    return {"object": "chat.completion", "choices": [choice]}


@pytest.mark.parametrize(
    "body",
    [
        *map(chat, ("error", "network_error", "insufficient_system_resource", "abort", "new")),
        *map(chat, ("ERROR", "MALFORMED_FUNCTION_CALL", "FINISH_REASON_UNSPECIFIED")),
        chat("stop", native_finish_reason="network_error"),
        chat("stop", provider_specific_fields={"native_finish_reason": "error"}),
        chat("stop", error={"code": 502, "message": "upstream"}),
        {"choices": [chat("stop")["choices"][0], chat("error")["choices"][0]]},
        {"object": "response", "status": "failed", "error": None},
        {"object": "response", "status": "cancelled"},
        {"object": "response", "status": "failed", "error": {"code": "server_error"}},
        {"error": {"message": "no"}},
        {"object": "chat.completion", "choices": []},
        {"object": "list", "data": []},
        {"code": "x", "message": "no answer at all"},
        chat("rate_limit_exceeded"),
        chat("context_length_exceeded"),
    ],
)
def test_a_failed_generation_is_the_providers_fault(body: dict[str, Any]) -> None:
    fault = fault_in_answer(body)
    assert fault is not None
    assert fault.category is Category.PROVIDER
    assert isinstance(fault.error(), errors.ProviderUnavailable | errors.RateLimited)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"code": 402, "message": "Insufficient credits"}}, BILLING),
        (chat("insufficient_quota"), BILLING),
        ({"object": "response", "status": "failed", "error": {"code": "invalid_prompt"}}, INVALID),
        (
            {"object": "response", "status": "failed", "error": {"code": "rate_limit_exceeded"}},
            RATE,
        ),
    ],
)
def test_an_error_in_an_answer_is_classified_like_any_other(
    body: dict[str, Any], reason: Reason
) -> None:
    fault = fault_in_answer(body)
    assert fault is not None
    assert fault.reason is reason


@pytest.mark.parametrize(
    "body",
    [
        *map(chat, ("stop", "length", "tool_calls", "content_filter", "end_turn", "MAX_TOKENS")),
        *map(chat, ("model_length", "MODEL_ARMOR", "token_limit", "repetition", "FINISHED")),
        chat(None),
        chat("stop", native_finish_reason="completed"),
        {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]},
        {"object": "response", "status": "completed", "error": None},
        {
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
        },
    ],
)
def test_a_complete_answer_has_no_fault(body: dict[str, Any]) -> None:
    assert fault_in_answer(body) is None
