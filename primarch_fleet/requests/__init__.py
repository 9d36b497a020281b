"""The requests that producers send: a module for each kind, and a row for each in REQUESTS."""

from __future__ import annotations

from primarch_fleet.requests.base import Request, RoutingStrategy
from primarch_fleet.requests.chat import CompletionRequest
from primarch_fleet.requests.embeddings import EmbeddingRequest
from primarch_fleet.requests.moderations import ModerationRequest
from primarch_fleet.requests.responses import ResponsesRequest

#: The request classes by verb, the last part of a task name.
REQUESTS: dict[str, type[Request]] = {
    kind.verb: kind
    for kind in (
        CompletionRequest,
        EmbeddingRequest,
        ResponsesRequest,
        ModerationRequest,
    )
}

__all__ = [
    "REQUESTS",
    "CompletionRequest",
    "EmbeddingRequest",
    "ModerationRequest",
    "Request",
    "ResponsesRequest",
    "RoutingStrategy",
]
