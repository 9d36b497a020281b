"""Answers with status 200 whose generation failed: by their finish reason, status or error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from primarch_fleet.chat_form import FINISH_REASONS
from tasks.failure_reasons import Category, Reason
from tasks.provider_errors import Fault, classify

#: What a provider says of a failed generation beside a finish reason that hides it.
#: https://openrouter.ai/docs/api/reference/overview (native_finish_reason)
#: https://api-docs.deepseek.com/api/create-chat-completion (insufficient_system_resource)
#: https://docs.z.ai/api-reference/llm/chat-completion (network_error)
FAILED_FINISH_REASONS = frozenset(
    {
        *("error", "abort", "network_error", "insufficient_system_resource"),
        *("malformed_function_call", "malformed_response", "unexpected_tool_call"),
        *("too_many_tool_calls", "missing_thought_signature", "finish_reason_unspecified"),
    }
)
#: What answers without choices have in their place.
OTHER_OUTPUT = frozenset({"data", "output", "results"})


def fault_in_answer(body: Mapping[str, Any]) -> Fault | None:
    """Return why the generation of an answer with status 200 failed; None if it did not.

    Args:
        body: A whole answer of any endpoint: `chat.completion`, `response`, a list.
    """
    for part in (body, *_choices(body)):
        if error := error_in(part):  # OpenRouter's choices have one too
            return fault_of_error(error)
    if body.get("object") == "response":
        failed = body.get("status") in ("failed", "cancelled")
        return failed_generation(f"the response is {body['status']}") if failed else None
    if not any(body.get(name) for name in ("choices", *OTHER_OUTPUT)):
        return failed_generation("it is empty")
    return next(map(_fault_of_finish, _failures(body)), None)


def error_in(value: Mapping[str, Any]) -> object:
    """Return the error of an answer or of a line; None without one, or without a word in it."""
    error = value.get("error")
    return error if not isinstance(error, Mapping) or any(error.values()) else None


def fault_of_error(error: object) -> Fault:
    """Return what an error in the place of an answer means, or of a chunk."""
    fault = classify(None, error)
    return failed_generation(fault.message) if fault.reason is Reason.UNKNOWN else fault


def is_failed_finish(finish_reason: object) -> bool:
    """Return whether a finish reason, in any provider's words, is none of a complete choice."""
    return bool(finish_reason) and str(finish_reason).lower() not in FINISH_REASONS


def _fault_of_finish(name: str) -> Fault:
    """Why a choice failed; its finish reason may be a code, for example of a refused account."""
    fault = classify(None, {"code": name})
    is_known = fault.category is not Category.REQUEST and fault.reason is not Reason.UNKNOWN
    return Fault(
        fault.reason if is_known else Reason.GENERATION_FAILED,
        failed_generation(f"finish_reason: {name}").message,
    )


def _failures(body: Mapping[str, Any]) -> Iterator[str]:
    """The finish reasons of the failed choices of an answer."""
    for choice in _choices(body):
        own = choice.get("provider_specific_fields") or {}
        for name in (choice.get("finish_reason"), own.get("native_finish_reason")):
            if is_failed_finish(name):
                yield str(name)
        native = choice.get("native_finish_reason")
        if str(native).lower() in FAILED_FINISH_REASONS:
            yield str(native)


def _choices(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = body.get("choices")
    return [choice for choice in choices or () if isinstance(choice, Mapping)]


def failed_generation(why: str) -> Fault:
    """Return the fault of an answer whose generation failed."""
    return Fault(Reason.GENERATION_FAILED, f"the provider failed to generate the answer: {why}")
