"""What stands behind the local lane's tasks: one engine, fed by all of them at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from celery.exceptions import Reject

from config.engine import EngineConfig
from primarch_fleet.contract import PRIORITIES, Completion, CompletionRequest, Receipt, Request
from primarch_fleet.errors import EngineError, InvalidRequest
from tasks.accounting import UsageMeter
from tasks.serving import RequestMetadata
from workers.local.engines.base import Answer, Engine
from workers.local.stream_assembler import StreamAssembler
from workers.observability import metrics
from workers.stream_writer import Publish, StreamWriter, has_token

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the engine lives.
WATCH_INTERVAL = 1.0


class LocalServer:
    """Answers requests with one engine.

    Args:
        streams: Where the chunks go of those requests that ask for them.
        stop: Called once when the engine has died: ends the worker, which gives its messages back,
            so that whoever supervises it starts another.
    """

    def __init__(
        self, config: EngineConfig, engine: Engine, streams: StreamWriter, stop: Callable[[], None]
    ) -> None:
        self._config = config
        self._engine = engine
        self._streams = streams
        self._stop = stop
        self._ending = False
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch over the engine from now on, also while nobody asks it anything."""
        self._watch = asyncio.create_task(self._watch_engine())

    async def serve(self, request: Request, envelope: RequestMetadata) -> Completion:
        """One answer of the engine; streamed if that is asked for.

        Raises InvalidRequest, EngineError if the engine fails on this request, or Reject if it has
        died over it: the message goes back to its queue as a delivery that counts, and the worker
        ends. A request that comes after that waits for this end, and goes back uncounted.
        """
        if request.model not in self._config.models or request.kind != self._config.kind:
            names = ", ".join(self._config.models)
            raise InvalidRequest(f"model: this queue serves {names} for {self._config.kind}")
        if not (isinstance(request, CompletionRequest) and request.stream):
            return await self._serve(request, envelope)
        with self._streams.run(envelope.task_id) as publish:
            return await self._serve(request, envelope, publish)

    async def _serve(
        self, request: Request, envelope: RequestMetadata, publish: Publish | None = None
    ) -> Completion:
        started = time.perf_counter()
        answer = await self._answer(request, publish)
        receipt = self._receipt(request, envelope, answer, time.perf_counter() - started)
        metrics.observe(receipt)
        return Completion(body=answer.body, receipt=receipt)

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
        await self._streams.close()
        await self._engine.close()

    async def _watch_engine(self) -> None:
        while not self._engine.dead:  # noqa: ASYNC110 - no engine tells
            await asyncio.sleep(WATCH_INTERVAL)
        self._end()

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            logger.error("the engine has died", extra={"action": "engine_died"})
            self._stop()

    async def _answer(self, request: Request, publish: Publish | None) -> Answer:
        if self._engine.dead:
            self._end()
            await asyncio.Event().wait()
        try:
            return await self._ask(request, publish)
        except EngineError:
            if not self._engine.dead:
                raise
        self._end()
        raise Reject("the engine has died", requeue=True)

    async def _ask(self, request: Request, publish: Publish | None) -> Answer:
        UsageMeter.current().called = True
        body, priority = request.body(), PRIORITIES[request.priority]
        body.pop("stream", None)  # by the method that is called, not by the body
        if publish is not None:
            return await self._collect(body, priority, publish)
        if isinstance(request, CompletionRequest):
            return await self._engine.chat(body, priority)
        return await self._engine.embed(body, priority)

    async def _collect(self, body: dict[str, Any], priority: int, publish: Publish) -> Answer:
        """An answer put together of the chunks that are published as they come."""
        started, first_token = time.perf_counter(), None
        assembly = StreamAssembler()
        chunks = cast(AsyncGenerator[dict[str, Any]], self._engine.stream(body, priority))
        async with aclosing(chunks):
            async for chunk in chunks:
                assembly.add(chunk)
                if first_token is None and has_token(chunk):
                    first_token = time.perf_counter() - started
                if chunk["choices"]:  # not the usage: OpenAI sends it only to those who ask for it
                    publish(chunk)
        return Answer(assembly.body(), first_token)

    def _receipt(
        self, request: Request, envelope: RequestMetadata, answer: Answer, latency: float
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
