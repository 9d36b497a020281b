"""The seam between the local lane and what generates its tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol


class Answer(NamedTuple):
    """OpenAI's response body and the seconds to its first token, None where there is none."""

    body: dict[str, Any]
    time_to_first_token: float | None


class Engine(Protocol):
    """One model on this machine. Requests given to it at the same time are batched by it.

    Each request is OpenAI's body and a priority: of those that wait, the lowest goes first. The
    answer is what OpenAI's server would give. Raises EngineError, or InvalidRequest for what the
    engine cannot do: a parameter is honoured or refused, never ignored. Cancelling the call aborts
    the request in the engine.
    """

    #: True when no real model answers.
    simulated: bool

    @property
    def dead(self) -> bool:
        """True once it cannot answer any more: only a new process can."""

    async def chat(self, body: dict[str, Any], priority: int = 0) -> Answer:
        """A chat completion."""

    def stream(self, body: dict[str, Any], priority: int = 0) -> AsyncIterator[dict[str, Any]]:
        """A chat completion as OpenAI's `chat.completion.chunk` bodies, as they come.

        The last has the `usage` and no choices. Together they are what `chat` answers. Closing the
        iterator aborts the request in the engine, as cancelling does.
        """

    async def embed(self, body: dict[str, Any], priority: int = 0) -> Answer:
        """Embeddings."""

    async def close(self) -> None:
        """Shut the engine down and free its hardware."""
