"""Counts the calls that LiteLLM's Router makes for one request."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from tasks.accounting import UsageMeter
from workers.realtime.provider_call import ProviderCalls


class Attempts:
    """The provider calls made for the request of the current asyncio task.

    The Router's own headers count only the retries of its last model group; this class counts all.
    """

    _current: ContextVar[Attempts] = ContextVar("attempts")

    def __init__(self) -> None:
        self._started = time.perf_counter()
        #: When each call was made, by `time.perf_counter`.
        self.call_times: list[float] = []
        #: The models that were called.
        self.models: set[str] = set()
        #: Ids of the deployments that failed since the Router was last called.
        self.failed_deployments: set[str] = set()
        #: Seconds until the first token of a stream; None until it is published.
        self.time_to_first_token: float | None = None
        self._current.set(self)

    @property
    def count(self) -> int:
        """Calls made so far."""
        return len(self.call_times)

    @property
    def routing_seconds(self) -> float:
        """Seconds until the first call; 0 if no call was made."""
        return self.call_times[0] - self._started if self.call_times else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started

    def fallbacks(self, requested_model: str) -> int:
        """The number of models that failed, counting the requested one and its fallbacks.

        LiteLLM's own count includes steps to the next `order` of a model and is lost in streams.
        """
        return len({requested_model, *self.models}) - 1

    @classmethod
    def record_call(cls, model: str) -> None:
        """Count a call to a deployment of `model` for the current request, if there is one."""
        UsageMeter.current().called = True
        attempts = cls._current.get(None)
        if attempts is not None:
            attempts.call_times.append(time.perf_counter())
            attempts.models.add(model)

    @classmethod
    def record_failure(cls, deployment_id: str) -> None:
        """Record a failed call for the current request, if there is one."""
        attempts = cls._current.get(None)
        if attempts is not None:
            attempts.failed_deployments.add(deployment_id)


class _AttemptLogger(CustomLogger):
    """LiteLLM callbacks that run just before each call, in the context of its request."""

    async def async_pre_call_deployment_hook(self, kwargs: Any, call_type: Any) -> Any:
        """Called before LiteLLM builds the request for a deployment; the result replaces kwargs."""
        return await ProviderCalls.fit_current(kwargs)

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        params = kwargs["litellm_params"]
        metadata = params.get("metadata") or params.get("litellm_metadata") or {}
        if "model_group" in metadata:  # else a request that is built and not sent
            Attempts.record_call(metadata["model_group"])


#: One per process, however many Routers there are: LiteLLM's callbacks are global.
ATTEMPT_LOGGER = _AttemptLogger()
