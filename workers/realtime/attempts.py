"""Counting the calls that LiteLLM's Router makes for one request."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from tasks.accounting import UsageMeter


class Attempts:
    """The calls made to providers for the request of the current asyncio task.

    The Router's own headers count the retries of its last model group only; this counts all.
    """

    _current: ContextVar[Attempts] = ContextVar("attempts")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.at: list[float] = []
        self.models: set[str] = set()
        #: Deployments that failed since the Router was last asked.
        self.failed: set[str] = set()
        #: Seconds until the first token of a stream, which readers then have; None before.
        self.first_token: float | None = None
        self._current.set(self)

    @property
    def routing(self) -> float | None:
        """Seconds until the first call; None if there was none."""
        return self.at[0] - self.started if self.at else None

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def fallbacks(self, requested: str) -> int:
        """How many models were given up, of the one that was requested and those called for it.

        LiteLLM also counts a step to the next `order` of a model, and forgets all in streams.
        """
        return len({requested, *self.models}) - 1

    @classmethod
    def called(cls, model: str) -> None:
        """Count a call to a deployment of a model for the request at hand, if there is one."""
        UsageMeter.current().called = True
        attempts = cls._current.get(None)
        if attempts is not None:
            attempts.at.append(time.perf_counter())
            attempts.models.add(model)

    @classmethod
    def failed_at(cls, deployment: str) -> None:
        """Note a call that failed for the request at hand, if there is one."""
        attempts = cls._current.get(None)
        if attempts is not None:
            attempts.failed.add(deployment)


class _Logger(CustomLogger):
    """LiteLLM tells it of each call, in the context of the request, just before it is made."""

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        Attempts.called(kwargs["litellm_params"]["metadata"]["model_group"])


#: One a process, however many Routers: LiteLLM's callbacks are global.
LOGGER = _Logger()
