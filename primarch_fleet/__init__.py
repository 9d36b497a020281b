"""Call language models through the fleet: what services import.

from primarch_fleet import CompletionRequest, Fleet

with Fleet("redis://localhost:6379/0") as fleet:
    ticket = fleet.submit(CompletionRequest(model="gpt-4o-mini", messages=[...]))
    print(fleet.result(ticket, timeout=30).text)
    for chunk in fleet.stream(CompletionRequest(model="gpt-4o-mini", messages=[...])):
        print(chunk.text, end="")
"""

from primarch_fleet.async_client import AsyncFleet, AsyncStream
from primarch_fleet.budgets import Budget, Spending
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.client import Fleet
from primarch_fleet.completions import Finished
from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import (
    AccountUnavailable,
    AuthenticationFailed,
    BatchCancelled,
    BatchError,
    BatchExpired,
    BodyUnavailable,
    BudgetExceeded,
    BudgetUnavailable,
    Cancelled,
    ClientClosed,
    ConfigError,
    ContentPolicyViolation,
    ContextWindowExceeded,
    CostCapExceeded,
    DeadlineExceeded,
    EngineError,
    FleetBusy,
    FleetError,
    FleetUnavailable,
    IdempotencyConflict,
    InvalidAnswer,
    InvalidRequest,
    LaneFull,
    LaneUnavailable,
    NoCatalogue,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestFailed,
    RequestTooLarge,
    ResultExpired,
    ResultTimeout,
    StreamInterrupted,
    TenantLimited,
    UnknownModel,
    UnknownRequest,
)
from primarch_fleet.prices import Price, Rates
from primarch_fleet.progress import Progress
from primarch_fleet.requests import (
    CompletionRequest,
    EmbeddingRequest,
    ModerationRequest,
    ResponsesRequest,
)
from primarch_fleet.streaming import Chunk, Stream
from primarch_fleet.ticket import Ticket

__all__ = [
    "AccountUnavailable",
    "AsyncFleet",
    "AsyncStream",
    "AuthenticationFailed",
    "BatchCancelled",
    "BatchError",
    "BatchExpired",
    "BodyUnavailable",
    "Budget",
    "BudgetExceeded",
    "BudgetUnavailable",
    "Cancelled",
    "Catalogue",
    "Chunk",
    "ClientClosed",
    "Completion",
    "CompletionRequest",
    "ConfigError",
    "ContentPolicyViolation",
    "ContextWindowExceeded",
    "CostCapExceeded",
    "DeadlineExceeded",
    "EmbeddingRequest",
    "EngineError",
    "Finished",
    "Fleet",
    "FleetBusy",
    "FleetError",
    "FleetUnavailable",
    "IdempotencyConflict",
    "InvalidAnswer",
    "InvalidRequest",
    "LaneFull",
    "LaneUnavailable",
    "ModerationRequest",
    "NoCatalogue",
    "Price",
    "Progress",
    "ProviderError",
    "ProviderTimeout",
    "ProviderUnavailable",
    "RateLimited",
    "Rates",
    "Receipt",
    "RequestFailed",
    "RequestTooLarge",
    "ResponsesRequest",
    "ResultExpired",
    "ResultTimeout",
    "Spending",
    "Stream",
    "StreamInterrupted",
    "TenantLimited",
    "Ticket",
    "UnknownModel",
    "UnknownRequest",
]
