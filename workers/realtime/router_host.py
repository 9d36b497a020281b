"""The calls and pauses that LiteLLM's Router makes, with the fleet's handling of Retry-After."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from litellm.exceptions import InternalServerError, Timeout
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.router_python_host import PythonHost

from primarch_fleet.requests import REQUESTS
from tasks.failure_reasons import Category
from workers.realtime.accounts import Accounts
from workers.realtime.attempts import Attempts
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.errors import (
    UnrepeatedTimeout,
    fault_of,
    mark,
    mark_untranslated,
    shorten_retry_after,
    with_fault,
)
from workers.realtime.finish_reasons import CheckedChunks, error_of, failure_of
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

    __slots__ = ("accounts", "cooldowns", "flex_tier", "on_call", "timeout_retries")

    #: The cooldowns of this host's Router, and the accounts of its deployments; set after the
    #: Router is built, which needs the host.
    cooldowns: Cooldowns
    accounts: Accounts
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
        """Return the endpoint; the failures of those of OPERATIONS are classified and recorded."""
        endpoint = super().invoke(op)
        return self.checked(endpoint) if op in OPERATIONS else endpoint

    def checked(self, endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return an endpoint whose failures are classified and recorded."""

        @wraps(endpoint)
        async def call(**arguments: Any) -> Any:
            raise_if_cancelled()
            attempts = Attempts.current()
            deployment_id, started = arguments["model_info"]["id"], time.perf_counter()
            calls = 0
            if attempts is not None:
                arguments |= attempts.timeouts(arguments)
                calls = attempts.count
            try:
                answer = await self.flex_tier.call(endpoint, arguments)
                seconds = time.perf_counter() - started
                await _fetch_stream(answer)
                if attempts is not None:
                    attempts.record_stream(answer)
                await self._check(answer, deployment_id, attempts)
            except Exception as error:
                if attempts is not None and attempts.count == calls:
                    mark_untranslated(error)
                self.on_call(deployment_id, time.perf_counter() - started, error)
                failure = self._failure(deployment_id, error)
                if failure is error:
                    raise
                raise failure from error
            self.on_call(deployment_id, seconds, None)
            self.accounts.answer(deployment_id)
            return answer

        return call

    async def _check(self, answer: Any, deployment_id: str, attempts: Attempts | None) -> None:
        """Raise the error of an answer whose generation failed; a stream may raise it later."""
        try:
            if isinstance(answer, CustomStreamWrapper):
                await _check_stream(answer, attempts.record_usage if attempts else _ignore)
            elif (fault := failure_of(answer)) is not None:
                if attempts is not None:
                    attempts.record_usage(answer.model_dump().get("usage"))
                raise error_of(fault, str(getattr(answer, "model", "")), "")
        except InternalServerError as error:
            if fault_of(error).category is not Category.PROVIDER:
                raise
            self.cooldowns.record_failure(deployment_id, error, HTTPStatus.INTERNAL_SERVER_ERROR)
            raise

    def _failure(self, deployment_id: str, error: Exception) -> Exception:
        """Record a failure; return the error by which the Router does what it calls for."""
        fault = fault_of(error)
        shorten_retry_after(error)
        if (attempts := Attempts.current()) is not None:
            attempts.record_failure(deployment_id, error)
        self.cooldowns.apply_retry_after(deployment_id, error)
        if fault.category is Category.ACCOUNT:
            self.accounts.refuse(deployment_id, fault, error)
        routed: Any = with_fault(error, fault)
        if isinstance(error, Timeout) and not any(self.timeout_retries.values()):
            routed = mark(UnrepeatedTimeout.of(error), fault)
        # LiteLLM needs this attribute to try another deployment, but sets it for chats only.
        routed.failed_deployment_id = deployment_id
        failure: Exception = routed
        return failure


async def _fetch_stream(answer: Any) -> None:
    """Call the provider of a stream, if that was not done: LiteLLM calls some only here."""
    if isinstance(answer, CustomStreamWrapper):
        stream: Any = answer
        await stream.fetch_stream()


def _ignore() -> None:
    """The calls of a health check are not counted."""


async def _check_stream(stream: Any, on_failure: Callable[[], None]) -> None:
    """Read a stream up to its first output, and have it fail when its generation fails."""
    chunks = stream.completion_stream
    if hasattr(chunks, "__aiter__"):
        checked = CheckedChunks(chunks, stream.model, str(stream.custom_llm_provider), on_failure)
        stream.completion_stream = checked
        try:
            await checked.read_first_output()
        except InternalServerError:
            await stream.aclose()
            raise


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled.

    LiteLLM swallows a cancellation that arrives while it handles an error, and would continue its
    retries after the deadline of the request.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
