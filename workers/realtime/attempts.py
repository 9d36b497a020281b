"""Counting the calls that LiteLLM's Router makes for one request."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from litellm.integrations.custom_logger import CustomLogger


class Attempts:
    """The calls made to providers for the request of the current asyncio task.

    The Router's own headers count the retries of its last model group only; this counts all.
    """

    _current: ContextVar[Attempts] = ContextVar("attempts")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.at: list[float] = []
        self._current.set(self)

    @property
    def routing(self) -> float | None:
        """Seconds until the first call; None if there was none."""
        return self.at[0] - self.started if self.at else None

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    @classmethod
    def called(cls) -> None:
        """Count a call for the request at hand, if there is one."""
        attempts = cls._current.get(None)
        if attempts is not None:
            attempts.at.append(time.perf_counter())


class _Logger(CustomLogger):
    """LiteLLM tells it of each call, in the context of the request, just before it is made."""

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        Attempts.called()


#: One a process, however many Routers: LiteLLM's callbacks are global.
LOGGER = _Logger()
