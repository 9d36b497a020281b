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
from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import FleetError
from primarch_fleet.outgoing import Ticket
from primarch_fleet.prices import Price, Rates
from primarch_fleet.progress import Progress
from primarch_fleet.requests import (
    CompletionRequest,
    EmbeddingRequest,
    ModerationRequest,
    ResponsesRequest,
)
from primarch_fleet.streaming import Chunk, Stream

__all__ = [
    "AsyncFleet",
    "AsyncStream",
    "Budget",
    "Catalogue",
    "Chunk",
    "Completion",
    "CompletionRequest",
    "EmbeddingRequest",
    "Fleet",
    "FleetError",
    "ModerationRequest",
    "Price",
    "Progress",
    "Rates",
    "Receipt",
    "ResponsesRequest",
    "Spending",
    "Stream",
    "Ticket",
]
