"""Codes, words and statuses by which providers say what went wrong, with their public sources."""

from __future__ import annotations

import re

from tasks.failure_reasons import Reason


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Codes, and types and exceptions that name one reason, in lower case. Sources:
#: https://platform.openai.com/docs/guides/error-codes
#: https://github.com/openai/openai-python/issues/2084 (token_limit_exceeded)
#: https://learn.microsoft.com/azure/ai-foundry/openai/how-to/batch (batches)
#: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
#: https://docs.anthropic.com/en/api/errors
#: https://ai.google.dev/gemini-api/docs/troubleshooting, https://cloud.google.com/apis/design/errors
#: https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html
#: https://console.groq.com/docs/errors, https://platform.moonshot.ai/docs/api/chat
#: https://www.alibabacloud.com/help/en/model-studio/error-code
#: https://github.com/langchain-ai/langchainjs/issues/1929 (insufficient_quota is no rate limit)
CODES: dict[Reason, str] = {
    Reason.CONTEXT_WINDOW: "context_length_exceeded context_window_exceeded "
    "model_context_window_exceeded exceed_context_size_error",
    Reason.CONTENT_POLICY: "content_policy_violation content_filter responsibleaipolicyviolation "
    "content_filter_error moderation_blocked policy_violation cyber_policy data_inspection_failed "
    "image_content_policy_violation content_moderation",
    Reason.MODEL_NOT_FOUND: "model_not_found deploymentnotfound model_not_available "
    "model_decommissioned model_deprecated invalid_model not_found_error not_found "
    "resourcenotfoundexception notfounderror model_terms_required",
    Reason.CREDENTIALS: "invalid_api_key incorrect_api_key api_key_invalid api_key_expired "
    "account_deactivated invalid_authentication authentication_error unauthenticated "
    "expired_api_key unrecognizedclientexception invalidsignatureexception expiredtokenexception "
    "expiredtoken invalidclienttokenid missingauthenticationtoken incompletesignature "
    "authenticationerror invalid_subscription_key invalid_token expired_token unauthorized "
    "invalid_organization mismatched_organization mismatched_project",
    Reason.PERMISSION: "permission_error permission_denied permissiondenied permissiondeniederror "
    "accessdeniedexception accessdenied insufficient_permissions organization_restricted "
    "unsupported_country_region_territory blocked_api_access service_disabled consumer_suspended "
    "notauthorized input_no_permissions ip_not_authorized project_archived must_be_verified "
    "organization_deactivated",
    Reason.BILLING: "insufficient_quota billing_hard_limit_reached billing_not_active "
    "billing_error billing_limit_reached quota_exceeded exceeded_current_quota_error "
    "exceeded_current_quota insufficient_balance insufficient_funds insufficient_credits "
    "credit_limit credit_balance_exhausted usage_limit_reached terminal_quota_exhausted "
    "outofcallvolumequota servicequotaexceededexception billing_disabled arrearage "
    "accountoverdueerror payment_required access_terminated budget_exceeded not_enough_balance "
    "token_quota_reached allocationquota.freetieronly",
    Reason.RATE_LIMIT: "rate_limit_exceeded rate_limit_error rate_limit_reached ratelimitreached "
    "ratelimiterror resource_exhausted throttlingexception throttling toomanyrequestsexception "
    "too_many_requests requestlimitexceeded requests tokens tokens_per_min requests_per_min "
    "tokens_usage_based engine_overloaded_error capacity_exceeded modelnotreadyexception "
    "resource_unavailable slow_down",
    Reason.QUEUE_FULL: "token_limit_exceeded enqueued_token_limit_exceeded",
    Reason.FILE_NOT_FOUND: "file_not_found",
    Reason.TIMEOUT: "request_timeout timeout timeout_error deadline_exceeded modeltimeoutexception "
    "timeouterror",
    Reason.NOT_EXECUTED: "batch_expired batch_cancelled batch_canceled",
    Reason.UNAVAILABLE: "server_error internal_server_error internal_error internalerror "
    "internalservererror overloaded_error service_unavailable serviceunavailable unavailable "
    "internal modelerrorexception modelstreamerrorexception internalserverexception "
    "internalfailure serviceunavailableexception enginedeaderror generationerror "
    "bad_gateway aborted cancelled vector_store_timeout upstream_error provider_error",
    Reason.GENERATION_FAILED: "tool_use_failed json_validate_failed output_parse_failed",
    Reason.INVALID_REQUEST: "invalid_json invalid_json_line request_too_large "
    "string_above_max_length missing_required_parameter unknown_parameter duplicate_custom_id "
    "empty_file url_mismatch model_mismatch failed_to_download_image untranslatable "
    "previous_response_not_found conversation_not_found item_not_found container_not_found "
    "vector_store_not_found prompt_not_found",
}
#: Codes and types that name no reason by themselves: the message may, and then the status does.
GENERIC_CODES = _names(
    "invalid_request_error invalid_request badrequest bad_request badrequesterror valueerror "
    "bad_request_error invalid_argument validationexception failed_precondition"
)
#: Codes of faults of the request, by their form: OpenAI has dozens and publishes no list.
REQUEST_CODES = re.compile(
    r"^(invalid|unsupported|missing|empty|image|array|integer|decimal|string|object)_"
    r"|_(max|min)_(length|value)$"
)

#: Parts of messages, in lower case, that mean BILLING whatever the code is: Google sends them with
#: the code of a rate limit, Groq and Bedrock with that of a permission. Sources:
#: https://ai.google.dev/gemini-api/docs/billing (credits, spending cap)
#: https://console.groq.com/docs/spend-limits
#: https://docs.aws.amazon.com/bedrock/latest/userguide/model-access.html
SPENT_WORDS = (
    "prepayment credits are depleted",
    "monthly spending cap",
    "spend limit reached",
    "invalid_payment_instrument",
)
#: Parts of messages, in lower case, for errors without a code of their own. The first that a
#: message has decides. Sources, besides those above:
#: the issue kaibo#169 (a batch whose input file is gone)
#: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (maximum context length)
#: https://api-docs.deepseek.com/quick_start/error_codes, https://openrouter.ai/docs/api/reference/errors
#: https://github.com/BerriAI/litellm/blob/main/litellm/litellm_core_utils/exception_mapping_utils.py
WORDS: tuple[tuple[Reason, tuple[str, ...]], ...] = (
    (Reason.QUEUE_FULL, ("enqueued token", "number of enqueued tokens")),
    (Reason.FILE_NOT_FOUND, ("cannot find file", "no such file")),
    (
        Reason.BILLING,
        (
            "credit balance is too low",
            "billing hard limit",
            "insufficient balance",
            "insufficient credits",
            "insufficient_quota",
            "exceeded your current quota, please check your plan",
            "account is not active, please check your billing",
            "your account is in good standing",
            "used all available credits",
            "api usage limits",
            "monthly spending limit",
            "budget has been exceeded",
            "key limit exceeded",
            "doesn't have any credits",
            "account balance is insufficient",
            "requires billing",
            "enable billing",
            "out of call volume quota",
        ),
    ),
    (
        Reason.CREDENTIALS,
        (
            "incorrect api key provided",
            "api key not valid",
            "invalid api key",
            "invalid x-api-key",
            "invalid subscription key",
            "no auth credentials found",
            "the security token included in the request is",
            # of those who sign in before the call: Google, AWS, Azure, LiteLLM
            "invalid_grant",
            "default credentials were not found",
            "vertex credentials file",
            "the config profile (",
            "aadsts",
            "no key is set",
            "missing gemini api key",
            "missing credentials. please pass",
        ),
    ),
    (
        Reason.PERMISSION,
        (
            "organization must be verified",
            "does not have access to the organization",
            "must be a member of an organization",
            "you don't have access to the model with the specified model id",
            "location is not supported",
            "organization has been disabled",
        ),
    ),
    (
        Reason.CONTEXT_WINDOW,
        (
            "maximum context",
            "maximum model length",
            "prompt is too long",
            "input is too long",
            "exceed context limit",
            "longer than the model's context length",
            "longer than the maximum model length",
            "input tokens exceed the configured limit",
            "exceeds the available context size",
            "exceeds the maximum number of tokens allowed",
            "tokens, limit is",
            "exceeds the context window",
            "exceeds the context length",
            "exceeded max context length",
            "prompt exceeds max length",
            "tokens) exceeds the maximum allowed length",
            "loaded with context length of only",
            "prompt token count",
            "context length is only",
            "maximum prompt length",
            "maximum input length is",
            "exceeded model token limit",
            "maximum allowed token size",
            "range of input length",
            "`inputs` must have less than",
            "`inputs` tokens + `max_new_tokens` must be",
            "too many tokens: ",
            "while limit is",
            "reduce the length of the messages",
        ),
    ),
    (
        Reason.CONTENT_POLICY,
        (
            "content management policy",
            "as a result of our safety system",
            "blocked by content filtering",
            "prohibited content",
            "flagged as potentially violating",
            "your input was flagged",
            "content exists risk",
            "content violates usage guidelines",
            "potentially unsafe or sensitive content",
        ),
    ),
    (
        Reason.MODEL_NOT_FOUND,
        (
            "does not exist or you do not have access to it",
            "model not exist",
            "model identifier is invalid",
            "with on-demand throughput",
            "is not a valid model id",
        ),
    ),
    (Reason.UNAVAILABLE, ("model is overloaded", "service is currently unavailable")),
)

#: Statuses that decide where neither code nor message does. 0 is OpenAI's for a line that it lost:
#: https://github.com/tidyverse/ellmer/issues/830. 498 is Groq's for a lack of capacity, 529
#: Anthropic's for an overload, 501 vLLM's for a parameter that it does not have.
STATUSES: dict[int, Reason] = {
    **dict.fromkeys(
        (400, 405, 406, 411, 413, 414, 415, 422, 431, 451, 501), Reason.INVALID_REQUEST
    ),
    401: Reason.CREDENTIALS,
    402: Reason.BILLING,
    403: Reason.PERMISSION,
    **dict.fromkeys((404, 410), Reason.MODEL_NOT_FOUND),
    408: Reason.TIMEOUT,
    **dict.fromkeys((429, 498), Reason.RATE_LIMIT),
    **dict.fromkeys((0, 409, 424, 425, 499), Reason.UNAVAILABLE),
}
