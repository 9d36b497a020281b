"""The seam between the local lane and what generates its tokens."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Answer(NamedTuple):
    """OpenAI's response body and the seconds to its first token, None where there is none."""

    body: dict[str, Any]
    time_to_first_token: float | None


class Engine(Protocol):
    """One model on this machine. Requests given to it at the same time are batched by it.

    Each method takes OpenAI's request body and returns what OpenAI's server would; it raises
    EngineError, or InvalidRequest for what the engine cannot do. Cancelling the call aborts the
    request in the engine.
    """

    #: True when no real model answers.
    simulated: bool

    @property
    def dead(self) -> bool:
        """True once it cannot answer any more: only a new process can."""

    async def chat(self, body: dict[str, Any]) -> Answer:
        """A chat completion."""

    async def embed(self, body: dict[str, Any]) -> Answer:
        """Embeddings."""

    async def close(self) -> None:
        """Shut the engine down and free its hardware."""
