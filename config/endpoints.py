"""Which requests a model answers: by its kind, and in batches by its provider."""

from __future__ import annotations

from primarch_fleet.contract import ModelKind
from primarch_fleet.requests import (
    REQUESTS,
    CompletionRequest,
    EmbeddingRequest,
    ModerationRequest,
    ResponsesRequest,
)

_CHAT, _RESPONSES = CompletionRequest.endpoint, ResponsesRequest.endpoint
_EMBEDDINGS = EmbeddingRequest.endpoint

#: What the batches of a provider serve, by `litellm_provider`. Each has an adapter in scheduler/.
#: https://platform.openai.com/docs/api-reference/batch/create
#: https://learn.microsoft.com/en-us/azure/ai-foundry/openai/how-to/batch
#: https://docs.claude.com/en/docs/build-with-claude/batch-processing
#: https://console.groq.com/docs/batch, https://ai.google.dev/gemini-api/docs/batch-api
BATCH_ENDPOINTS: dict[str, frozenset[str]] = {
    "anthropic": frozenset({_CHAT}),
    "azure": frozenset({_CHAT, _RESPONSES}),
    "gemini": frozenset({_CHAT}),
    "groq": frozenset({_CHAT}),
    "hosted_vllm": frozenset({_CHAT, _EMBEDDINGS}),
    "openai": frozenset({_CHAT, _RESPONSES, _EMBEDDINGS, ModerationRequest.endpoint}),
}


def endpoints(kind: ModelKind) -> tuple[str, ...]:
    """Return the paths of the requests that a model of a kind answers."""
    return tuple(request.endpoint for request in REQUESTS.values() if kind in request.kinds)


def batch_endpoints(kind: ModelKind, litellm_provider: str) -> tuple[str, ...]:
    """Return the paths of the requests that a model answers in a provider's batches."""
    served = BATCH_ENDPOINTS.get(litellm_provider, frozenset())
    return tuple(
        request.endpoint
        for request in REQUESTS.values()
        if kind in request.kinds and request.endpoint_at(kind) in served
    )
