"""Records the calls that LiteLLM's Router makes for one request, and what they may cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from litellm.exceptions import Timeout
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.utils import EmbeddingResponse, ModelResponse

from primarch_fleet.money import NANOS_PER_DOLLAR
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.usage import parse_usage
from tasks.usage_meter import ProviderCall, UsageMeter
from workers.realtime.errors import code_of
from workers.realtime.provider_call import ProviderCalls
from workers.realtime.provider_stream import ProviderStream
from workers.realtime.unbilled_calls import was_refused


class Attempts:
    """The provider calls made for the request of the current asyncio task.

    The Router's own headers count only the retries of its last model group; this class counts all.

    Args:
        call_of: Returns a new call to the deployment with an id.
        patience: Seconds from now that the caller is willing to wait; None if it does not say.
    """

    _current: ContextVar[Attempts] = ContextVar("attempts")

    def __init__(
        self, call_of: Callable[[str], ProviderCall], patience: float | None = None
    ) -> None:
        self._started = time.perf_counter()
        self._patience = patience
        self._call_of = call_of
        self.meter = UsageMeter.current()
        self._model = ""
        self._call: ProviderCall | None = None
        self._last_error: Exception | None = None
        #: By model, the calls that timed out.
        self._timeouts: Counter[str] = Counter()
        #: When each call was made, by `time.perf_counter`.
        self.call_times: list[float] = []
        #: The models that were called.
        self.models: set[str] = set()
        #: Ids of the deployments that failed since the Router was last called.
        self.failed_deployments: set[str] = set()
        #: The first failure: the id of its deployment, and the fleet's code of the error.
        self.first_failure: tuple[str, str] | None = None
        #: Seconds until the first token of a stream; None until it is published.
        self.time_to_first_token: float | None = None
        #: What the provider of the last call has sent, if it streams.
        self.provider_stream = ProviderStream()
        self._current.set(self)

    @classmethod
    def current(cls) -> Attempts | None:
        """Return the attempts of the current request; None outside of a request."""
        return cls._current.get(None)

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

    def fallback_reason(self, requested_model: str) -> str | None:
        """Why another model was called; None if only the requested one was."""
        if not self.fallbacks(requested_model):
            return None
        return ": ".join(self.first_failure or (requested_model, "no deployment available"))

    def timeouts(self, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Return the timeouts of a call that the request lengthens, by LiteLLM's names."""
        if self._patience is None:
            return {}
        seconds = self._patience - self.elapsed
        return {
            name: seconds
            for name in ("timeout", "stream_timeout")
            if isinstance(arguments.get(name), int | float) and arguments[name] < seconds
        }

    def record_call(self, model: str, deployment_id: str) -> None:
        """Count a call to a deployment of `model`."""
        self.call_times.append(time.perf_counter())
        self.models.add(model)
        self._call = self.meter.start(self._call_of(deployment_id))
        self._model, self._last_error = model, None

    def record_failure(self, deployment_id: str, error: Exception) -> None:
        """Record that a deployment failed, in a call or before it was called."""
        self.failed_deployments.add(deployment_id)
        if self.first_failure is None:
            self.first_failure = deployment_id, code_of(error)
        self.end_call(error)

    def end_call(self, error: Exception) -> None:
        """Record the error of the last call, unless that is done; a stream fails while it is read.

        A request may also fail before any call is made.
        """
        if self._call is not None:
            self._last_error = error
            self._timeouts[self._model] += isinstance(error, Timeout)
            self._call.fail(code_of(error), refused=was_refused(error))
            self._call = None

    def record_usage(self, usage: object = None) -> None:
        """Record what the provider reports for the last call, whose generation failed.

        Args:
            usage: The usage in the answer; by default, what the call's stream has sent.
        """
        if self._call is not None:
            self._call.reported = parse_usage(usage or self.provider_stream.usage)

    def raise_repeated_timeout(self, retries: Mapping[str, int]) -> None:
        """Raise the last error if it is a timeout that is not repeated.

        LiteLLM applies its retry policy only to the first error of a model.

        Args:
            retries: By model, how often a call that timed out is repeated.
        """
        error, timeouts = self._last_error, self._timeouts[self._model]
        if isinstance(error, Timeout) and timeouts > retries.get(self._model, 0):
            raise error

    def record_cost(self, answer: ModelResponse | EmbeddingResponse, tier: str | None) -> None:
        """Give LiteLLM the cost of an answer by the fleet's prices, which it does not compute then.

        Its own computation takes a tenth of a call's CPU. Where the fleet takes the bill from
        LiteLLM, it stays.

        Args:
            tier: The service tier that was asked for.
        """
        call, reported = self._call, getattr(answer, "usage", None)
        if call is None or call.billed_by_litellm or reported is None:
            return
        usage = parse_usage(reported.model_dump(), getattr(answer, "service_tier", None))
        if usage is not None:
            cost = cost_nanousd(call.rates, usage, tier=tier)
            answer._hidden_params["response_cost"] = cost / NANOS_PER_DOLLAR

    def record_stream(self, stream: Any) -> None:
        """Read what goes into the stream of a call."""
        self.provider_stream = ProviderStream()
        self.provider_stream.read(stream)


class _AttemptLogger(CustomLogger):
    """LiteLLM callbacks that run before and after each call, in the context of its request."""

    async def async_pre_call_deployment_hook(self, kwargs: Any, call_type: Any) -> Any:
        """Called before LiteLLM builds the request for a deployment; the result replaces kwargs."""
        return await ProviderCalls.fit_current(kwargs)

    async def async_post_call_success_deployment_hook(
        self, request_data: Any, response: Any, call_type: Any
    ) -> None:
        """Called with an answer before LiteLLM computes its cost."""
        attempts = Attempts.current()
        if attempts is not None and isinstance(response, ModelResponse | EmbeddingResponse):
            attempts.record_cost(response, request_data.get("service_tier"))

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        params = kwargs["litellm_params"]
        metadata = params.get("metadata") or params.get("litellm_metadata") or {}
        attempts = Attempts.current()
        # A call without a group is built and not sent.
        if attempts is not None and "model_group" in metadata:
            attempts.record_call(metadata["model_group"], metadata["model_info"]["id"])


#: One per process, however many Routers there are: LiteLLM's callbacks are global.
ATTEMPT_LOGGER = _AttemptLogger()
