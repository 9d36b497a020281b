"""The calls and pauses that LiteLLM's Router makes, with the fleet's handling of Retry-After."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from litellm.router_python_host import PythonHost

from primarch_fleet.requests import REQUESTS
from workers.realtime.attempts import Attempts
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.flex_tier import FlexTier

#: The longest pause between two attempts at one deployment, in seconds.
MAX_PAUSE_SECONDS = 1.0
#: The operations of the Router that the fleet calls.
OPERATIONS = {kind.router_method for kind in REQUESTS.values()}


class RouterHost(PythonHost):
    """LiteLLM's host with shorter pauses; a failure with Retry-After cools its deployment down.

    No call and no pause begins in a task that was cancelled.

    Where a model has one deployment, the Router itself pauses for the failure's Retry-After: up to
    a minute before each retry, and once more before the fallback.

    `PythonHost` is undocumented; no other hook sees all calls and pauses of the Router.
    """

    __slots__ = ("cooldowns", "flex_tier", "on_call", "timeout_retries")

    #: The cooldowns of this host's Router; set after the Router is built, which needs the host.
    cooldowns: Cooldowns
    #: Makes the calls.
    flex_tier: FlexTier
    #: Called after each call with the deployment's id, the seconds until its answer or the first
    #: byte of its stream, and the error if it failed.
    on_call: Callable[[str, float, Exception | None], None]
    #: By model, how often a call that timed out is repeated.
    timeout_retries: dict[str, int]

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Sleep before a retry, but at most MAX_PAUSE_SECONDS.

        Raises:
            asyncio.CancelledError: The task was cancelled.
            litellm.Timeout: The last call timed out, and is not repeated.
        """
        raise_if_cancelled()
        if (attempts := Attempts.current()) is not None:
            attempts.raise_repeated_timeout(self.timeout_retries)
        return super().sleep(min(seconds, MAX_PAUSE_SECONDS))

    def invoke(self, op: str) -> Any:
        """Return the endpoint; those of OPERATIONS tell the cooldowns of Retry-After."""
        endpoint = super().invoke(op)
        return self.with_cooldowns(endpoint) if op in OPERATIONS else endpoint

    def with_cooldowns(self, endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return an endpoint that tells the cooldowns of Retry-After."""

        @wraps(endpoint)
        async def call(**arguments: Any) -> Any:
            raise_if_cancelled()
            deployment_id, started = arguments["model_info"]["id"], time.perf_counter()
            try:
                response = await self.flex_tier.call(endpoint, arguments)
            except Exception as error:
                self.on_call(deployment_id, time.perf_counter() - started, error)
                self._record_failure(deployment_id, error)
                raise
            self.on_call(deployment_id, time.perf_counter() - started, None)
            if (attempts := Attempts.current()) is not None:
                attempts.record_stream(response)
            return response

        return call

    def _record_failure(self, deployment_id: str, error: Any) -> None:
        # LiteLLM needs this attribute to try another deployment, but sets it for chats only.
        error.failed_deployment_id = deployment_id
        if (attempts := Attempts.current()) is not None:
            attempts.record_failure(deployment_id, error)
        self.cooldowns.apply_retry_after(deployment_id, error)


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled.

    LiteLLM swallows a cancellation that arrives while it handles an error, and would continue its
    retries after the deadline of the request.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
