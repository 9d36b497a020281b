"""What stands behind the local lane's tasks: one engine, fed by all of them at once."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from celery.exceptions import Reject

from config.fleet import Engine as EngineConfig
from primarch_fleet.contract import Completion, CompletionRequest, Receipt, Request
from primarch_fleet.errors import EngineError, InvalidRequest
from tasks.servers import Envelope
from workers import metrics
from workers.local.engines.base import Answer, Engine

logger = logging.getLogger(__name__)


def end_this_worker() -> None:
    """A warm shutdown, as by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


class LocalServer:
    """Answers requests with one engine.

    Args:
        stop: Called when the engine has died: ends the worker, which gives its messages back, so
            that whoever supervises it starts another.
    """

    def __init__(
        self, config: EngineConfig, engine: Engine, stop: Callable[[], None] = end_this_worker
    ) -> None:
        self._config = config
        self._engine = engine
        self._stop = stop

    async def serve(self, request: Request, envelope: Envelope) -> Completion:
        """One answer of the engine.

        Raises InvalidRequest, EngineError if the engine fails on this request, or Reject if it has
        died: the message goes back to its queue and the worker ends.
        """
        if (request.model, request.kind) != (self._config.model, self._config.kind):
            raise InvalidRequest(
                f"model: this queue serves {self._config.model} for {self._config.kind}"
            )
        started = time.perf_counter()
        answer = await self._answer(request)
        receipt = self._receipt(request, envelope, answer, time.perf_counter() - started)
        metrics.observe(receipt)
        return Completion(body=answer.body, receipt=receipt)

    async def close(self) -> None:
        await self._engine.close()

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._ask(request)
        except EngineError:
            if not self._engine.dead:
                raise
        logger.error("the engine has died", extra={"action": "engine_died"})
        self._stop()
        raise Reject("the engine has died", requeue=True)

    async def _ask(self, request: Request) -> Answer:
        body = request.body()
        body.pop("stream", None)  # tokens are told as they come by the engine itself
        if isinstance(request, CompletionRequest):
            return await self._engine.chat(body)
        return await self._engine.embed(body)

    def _receipt(
        self, request: Request, envelope: Envelope, answer: Answer, latency: float
    ) -> Receipt:
        usage = answer.body["usage"]
        tokens = usage["prompt_tokens"], usage.get("completion_tokens", 0)
        price = self._config.price
        return Receipt(
            lane="local",
            reason=envelope.reason,
            requested_model=request.model,
            model=answer.body["model"],
            provider="local",
            deployment=self._config.queue,
            strategy=self._config.engine,
            simulated=self._engine.simulated,
            queue_wait=envelope.queue_wait,
            time_to_first_token=answer.time_to_first_token,
            latency=latency,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=price.cost(*tokens),
            list_cost=(self._config.list_price or price).cost(*tokens),
            trace_id=envelope.trace_id,
            tenant_id=request.tenant_id,
            user_id=request.user_id,
            metadata=request.metadata,
        )
