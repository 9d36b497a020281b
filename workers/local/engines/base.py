"""The interface between the local lane and the engine that generates its tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol


class Answer(NamedTuple):
    """OpenAI's response body, and the seconds to its first token (None for embeddings)."""

    body: dict[str, Any]
    time_to_first_token: float | None


class Engine(Protocol):
    """One model on this machine, which batches the requests that run at the same time.

    Each request is the path of an endpoint, OpenAI's body and a priority; of the waiting requests,
    the lowest priority runs first. The answer is what OpenAI's server would give. Cancelling a call
    aborts the request in the engine.

    Calls raise EngineError, or InvalidRequest for what the engine cannot do: a parameter is
    honoured or refused, never ignored.
    """

    #: True if no real model answers.
    simulated: bool

    @property
    def dead(self) -> bool:
        """True once the engine cannot answer any more and the process must be replaced."""

    @property
    def running(self) -> int:
        """Requests in the engine now."""

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        """Return what OpenAI's server would answer at an endpoint."""

    def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield an answer in OpenAI's chunks, as they arrive.

        Of a chat, the last chunk has the `usage` and no choices. Together the chunks form what
        `answer` returns. Closing the iterator aborts the request in the engine, as cancelling does.
        """

    async def close(self) -> None:
        """Shut the engine down and free its hardware."""
