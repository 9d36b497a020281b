"""Answers the local lane's requests with one engine, which batches all that run at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from celery.exceptions import Reject

from config.engine import EngineConfig
from primarch_fleet.answers import form_of
from primarch_fleet.contract import PRIORITIES, Completion, Receipt
from primarch_fleet.errors import (
    OUTCOMES,
    ContextWindowExceeded,
    EngineError,
    InvalidRequest,
)
from primarch_fleet.requests import Request
from primarch_fleet.usage import parse_usage
from tasks.answer_usage import usage_of
from tasks.failed_answers import fault_in_answer
from tasks.privacy import ENGINE, Privacy
from tasks.receipts import AnswerFacts, AnswerSource, RequestMetadata, build_receipt
from tasks.usage_meter import ProviderCall, UsageMeter
from workers.local.engines.base import Answer, Engine
from workers.observability import metrics
from workers.stream_assembler import ASSEMBLERS, IncompleteStream, StreamAssembler
from workers.stream_writer import Publish, StreamWriter

logger = logging.getLogger(__name__)

#: Seconds between two checks that the engine is alive.
WATCH_INTERVAL_SECONDS = 1.0


class LocalServer:
    """Answers requests with one engine.

    Args:
        config: The engine's settings.
        engine: The loaded engine.
        streams: Publishes the chunks of requests that stream.
        stop: Called once when the engine has died: stops the worker, which returns its messages
            to the queue, and whose supervisor starts a new one.
        privacy: Keeps the tenants' prefix caches apart; without it, they share one.
    """

    def __init__(
        self,
        config: EngineConfig,
        engine: Engine,
        streams: StreamWriter,
        stop: Callable[[], None],
        privacy: Privacy | None = None,
    ) -> None:
        self._privacy = privacy
        self._config = config
        self._price, self._list_price = config.rates(), config.list_rates()
        self._engine = engine
        self._streams = streams
        self._stop = stop
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start checking that the engine is alive, also while it has no requests."""
        self._watch = asyncio.create_task(self._watch_engine())

    async def serve(self, request: Request, metadata: RequestMetadata) -> Completion:
        """Return the engine's answer; publish its chunks if the request streams.

        A request that arrives after the engine died waits for the worker to stop: its message then
        returns to the queue, and the delivery does not count as an attempt.

        Raises:
            InvalidRequest: Another model or kind of request, or a parameter the engine refuses.
            ContextWindowExceeded: The prompt is too long for the engine.
            EngineError: The engine failed on this request.
            Reject: The engine died during this request. The message returns to the queue, the
                delivery counts as an attempt, and the worker stops.
        """
        if request.model not in self._config.models or self._config.kind not in request.kinds:
            names = ", ".join(self._config.models)
            raise InvalidRequest(
                f"model: this queue serves only {names}, for {self._config.kind} requests"
            )
        if why := request.unsupported().get("local"):
            raise InvalidRequest(why)
        if not request.streams:
            return await self._serve(request, metadata)
        try:
            with self._streams.run(metadata.task_id) as publish:
                return await self._serve(request, metadata, publish)
        except ContextWindowExceeded:
            await self._streams.flush()  # another lane may open the next run of this stream
            raise

    async def _serve(
        self, request: Request, metadata: RequestMetadata, publish: Publish | None = None
    ) -> Completion:
        started = time.perf_counter()
        answer = await self._answer(request, publish)
        receipt = self._receipt(request, metadata, answer, time.perf_counter() - started)
        metrics.record_answer(receipt)
        return Completion(body=answer.body, receipt=receipt)

    async def close(self) -> None:
        """Stop the watch, write the rest of the streams and close the engine."""
        if self._watch:
            self._watch.cancel()
        await self._streams.close()
        await self._engine.close()

    async def _watch_engine(self) -> None:
        while not self._engine.dead:  # noqa: ASYNC110 - engines send no event
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
        self._stop_once()

    def _stop_once(self) -> None:
        if not self._stopping:
            self._stopping = True
            logger.error("the engine has died", extra={"action": "engine_died"})
            self._stop()

    async def _answer(self, request: Request, publish: Publish | None) -> Answer:
        if self._engine.dead:
            self._stop_once()
            await asyncio.Event().wait()  # until the stopping worker cancels this task
        try:
            answer = await self._call(request, publish)
            if (fault := fault_in_answer(answer.body)) is not None:
                reported = parse_usage(answer.body.get("usage"))
                UsageMeter.current().fail(EngineError.code, reported)
                raise EngineError(fault.message)
            return answer
        except EngineError:
            if not self._engine.dead:
                raise
        self._stop_once()
        raise Reject("the engine has died", requeue=True)

    async def _call(self, request: Request, publish: Publish | None) -> Answer:
        body = {**request.body(), **self._privacy_fields(request)}
        priority = PRIORITIES[request.priority]
        body.pop("stream", None)  # the method that is called decides, not the body
        call = UsageMeter.current().start(self._provider_call(request))
        try:
            if publish is None:
                answer = await self._engine.answer(request.endpoint, body, priority)
                return answer._replace(body=request.normalized(answer.body))
            chunks = self._engine.stream(request.endpoint, body, priority)
            assembler, wants_usage = ASSEMBLERS[request.endpoint](), request.wants_usage
            return await _publish_stream(chunks, assembler, publish, wants_usage=wants_usage)
        except OUTCOMES as error:
            call.fail(error.code, refused=True)
            raise

    def _provider_call(self, request: Request) -> ProviderCall:
        config = self._config
        media = config.media_tokens
        return ProviderCall(
            config.queue, request.model, self._price, media, provider="local", system=config.engine
        )

    def _privacy_fields(self, request: Request) -> dict[str, Any]:
        return self._privacy.fields(request, ENGINE) if self._privacy else {}

    def _receipt(
        self, request: Request, metadata: RequestMetadata, answer: Answer, latency: float
    ) -> Receipt:
        source = AnswerSource(
            lane="local",
            provider="local",
            deployment=self._config.queue,
            strategy=self._config.engine,
            price=self._price,
            list_price=self._list_price,
            simulated=self._engine.simulated,
        )
        media = self._config.media_tokens
        usage = usage_of(answer.body, request.prompt_size, media)
        UsageMeter.current().answer(usage)
        facts = AnswerFacts(
            model=answer.body["model"],
            usage=usage,
            latency=latency,
            time_to_first_token=answer.time_to_first_token,
        )
        return build_receipt(request, metadata, source, facts)


async def _publish_stream(
    chunks: AsyncIterator[dict[str, Any]],
    assembler: StreamAssembler,
    publish: Publish,
    *,
    wants_usage: bool,
) -> Answer:
    """Publish the chunks as they arrive, and return the answer that they form."""
    started, first_token = time.perf_counter(), None
    async with aclosing(cast(AsyncGenerator[dict[str, Any]], chunks)):
        async for chunk in chunks:
            readable = assembler.add(chunk)
            form = form_of(readable)
            if first_token is None and form.has_token(readable):
                first_token = time.perf_counter() - started
            if form.is_for_readers(readable, wants_usage=wants_usage):
                publish(readable)
    try:
        return Answer(assembler.body(), first_token)
    except IncompleteStream as error:
        raise EngineError(f"the engine failed: {error}") from None
