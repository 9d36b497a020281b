"""What LiteLLM's Router reaches outside of itself: calls to providers, and pauses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from litellm.router_python_host import PythonHost

from workers.realtime.attempts import Attempts
from workers.realtime.cooldowns import Cooldowns

#: Seconds between two attempts at one deployment, at most.
MAX_PAUSE_SECONDS = 1.0
#: What the fleet calls.
CALLS = ("acompletion", "aembedding")


class RouterHost(PythonHost):
    """LiteLLM's own, with shorter pauses; deployments that ask for a pause are left alone.

    Where a model has one deployment, the Router does what the Retry-After of a failure says: up to
    a minute before each retry, and once more before the fallback.
    """

    __slots__ = ("cooldowns",)

    #: Of the Router that has this host, which is made after it.
    cooldowns: Cooldowns

    def sleep(self, seconds: float) -> Awaitable[None]:
        return super().sleep(min(seconds, MAX_PAUSE_SECONDS))

    def invoke(self, op: str) -> Any:
        endpoint = super().invoke(op)
        return self._heeding(endpoint) if op in CALLS else endpoint

    def _heeding(self, endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        @wraps(endpoint)
        async def call(**arguments: Any) -> Any:
            try:
                return await endpoint(**arguments)
            except Exception as error:
                self._heed(arguments["model_info"]["id"], error)
                raise

        return call

    def _heed(self, deployment: str, error: Any) -> None:
        # LiteLLM writes it on the errors of chats alone, and needs it to ask another deployment.
        error.failed_deployment_id = deployment
        Attempts.failed_at(deployment)
        self.cooldowns.heed(deployment, error)
