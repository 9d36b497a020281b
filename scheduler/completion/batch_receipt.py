"""Builds the completion of a batch request: the provider's answer and a receipt. Pure."""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from config.inline_accounts import receipt_provider
from config.media_tokens import media_tokens
from primarch_fleet.contract import Completion
from primarch_fleet.requests import CompletionRequest
from scheduler.model.job import AttemptCounts, Job, ParkedRequest
from tasks.answer_usage import usage_of
from tasks.receipts import AnswerFacts, AnswerSource, RequestMetadata, build_receipt


def completion(
    job: Job, body: dict[str, Any], parked: ParkedRequest, attempts: AttemptCounts, now: float
) -> Completion:
    """Build what the request's task returns.

    The queue wait ends when the request is parked; the latency runs from then to `now`.

    Raises:
        Exception: Any, if `body` is not a valid answer.
    """
    if body.get("object") == "response" and parked.kind is CompletionRequest:
        import workers.realtime.litellm_import  # noqa: F401, PLC0415
        from workers.realtime.bridged_answer import chat_completion  # noqa: PLC0415

        body = chat_completion(body)
    body = parked.kind.normalized(body)
    source = AnswerSource(
        lane="batch",
        provider=receipt_provider(job.group.provider),
        deployment=job.terms.deployment,
        strategy="batch",
        price=job.terms.price,
        list_price=job.terms.list_price,
        simulated=job.terms.simulated,
        batch_id=job.batch_id,
    )
    answer = AnswerFacts(
        model=body.get("model") or job.terms.upstream,
        usage=usage_of(body, parked.prompt_size, media_tokens(job.terms.upstream)),
        latency=max(0.0, now - parked.parked_at),
        attempts=attempts.tries + 1,
    )
    metadata = RequestMetadata.of(Context(parked.context), received_at=parked.parked_at)
    return Completion(body=body, receipt=build_receipt(parked.request, metadata, source, answer))
