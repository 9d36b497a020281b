"""One LiteLLM Router a process, and what it answers as the fleet's completions."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import litellm
from litellm.router import Router
from litellm.types.router import RetryPolicy

from config.fleet import Deployment, FleetConfig, Provider
from primarch_fleet.contract import Completion, CompletionRequest, Receipt, Request
from primarch_fleet.errors import FleetError, InvalidRequest
from tasks.servers import Envelope
from workers import metrics
from workers.realtime.attempts import LOGGER, Attempts
from workers.realtime.errors import translate
from workers.realtime.stream import Collector
from workers.stream import Publish, Writer

logger = logging.getLogger(__name__)

MICROS = 1_000_000
#: Seconds that a Redis which hangs may hold up a call; LiteLLM's default is 5 a call.
REDIS_PATIENCE = 0.2


class RealtimeServer:
    """Answers requests through the Router; build it on the loop that it will serve on."""

    def __init__(self, config: FleetConfig, redis_url: str) -> None:
        self._config = config
        self._deployments = {one.id: one for one in config.deployments}
        self._catalogue = config.catalogue()
        self._secrets = [provider.key() for provider in config.providers.values()]
        litellm.suppress_debug_info = True
        for name in ("LiteLLM", "LiteLLM Router"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if LOGGER not in litellm.callbacks:
            litellm.callbacks.append(LOGGER)
        self._router = build(config, redis_url)
        self._streams = Writer(redis_url)

    async def warm_up(self) -> None:
        """Have LiteLLM import what it needs for a call, seconds of it, before somebody waits."""
        chats = [one.model for one in self._config.deployments if one.kind == "chat"]
        for model in chats[:1]:
            await self._router.acompletion(model=model, messages=[], mock_response="ready")

    async def serve(self, request: Request, envelope: Envelope) -> Completion:
        """One answer, from the first deployment that gives one; streamed if that is asked for.

        Raises InvalidRequest (UnknownModel included), or ProviderError or a kind of it when no
        deployment answers, or one ends a stream before its answer is whole.
        """
        self._catalogue.model(request.model)
        if not (isinstance(request, CompletionRequest) and request.stream):
            return await self._serve(request, envelope)
        if (request.n or 1) > 1:
            raise InvalidRequest(
                "n: LiteLLM does not tell where the second choice of a stream ends"
            )
        with self._streams.run(envelope.task_id) as publish:
            return await self._serve(request, envelope, publish)

    async def close(self) -> None:
        await self._streams.close()
        self._router.retire()

    async def _serve(
        self, request: Request, envelope: Envelope, publish: Publish | None = None
    ) -> Completion:
        attempts = Attempts()
        try:
            response, first_token = await self._call(request, attempts, publish)
        except FleetError:
            raise
        except Exception as error:
            failure = translate(error, self._secrets)
            logger.warning(
                "request failed: %s",
                failure.code,
                extra={"action": "request_failed", "task_id": envelope.task_id},
            )
            raise failure from None
        receipt = self._receipt(request, envelope, attempts, response, first_token)
        metrics.observe(receipt)
        metrics.observe_routing(receipt.strategy, request.tenant_id, attempts.routing or 0.0)
        return Completion(body=response.model_dump(), receipt=receipt)

    async def _call(
        self, request: Request, attempts: Attempts, publish: Publish | None
    ) -> tuple[Any, float | None]:
        body = request.body() | {"metadata": {"tags": request.tags}}
        if not isinstance(request, CompletionRequest):
            return await self._router.aembedding(**body), None
        if publish is None:
            return await self._router.acompletion(**body), None
        return await self._collect(body, attempts, publish)

    async def _collect(
        self, body: dict[str, Any], attempts: Attempts, publish: Publish
    ) -> tuple[Any, float | None]:
        """A streamed answer put together, and the seconds until its first token."""
        collector = Collector(publish, lambda: attempts.elapsed)
        stream = await self._router.acompletion(**body, stream_options={"include_usage": True})
        await collector.collect(stream)
        response: Any = litellm.stream_chunk_builder(collector.chunks, messages=body["messages"])
        response._hidden_params = {**stream._hidden_params, **response._hidden_params}
        return response, collector.first_token

    def _receipt(
        self,
        request: Request,
        envelope: Envelope,
        attempts: Attempts,
        response: Any,
        first_token: float | None,
    ) -> Receipt:
        hidden = response._hidden_params
        deployment = self._deployments[hidden["model_id"]]
        usage = response.usage
        tokens = usage.prompt_tokens, usage.completion_tokens or 0
        return Receipt(
            lane="realtime",
            reason=envelope.reason,
            requested_model=request.model,
            model=response.model or deployment.upstream,
            provider=deployment.provider,
            deployment=deployment.id,
            strategy=self._config.routing.routing_strategy,
            simulated=self._config.providers[deployment.provider].simulated,
            attempts=max(1, len(attempts.at)),
            fallbacks=hidden["additional_headers"].get("x-litellm-attempted-fallbacks", 0),
            queue_wait=envelope.queue_wait,
            time_to_first_token=first_token,
            latency=attempts.elapsed,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=deployment.price.cost(*tokens),
            list_cost=self._catalogue.model(request.model).list_price.cost(*tokens),
            trace_id=envelope.trace_id,
            tenant_id=request.tenant_id,
            user_id=request.user_id,
            metadata=request.metadata,
        )


def build(config: FleetConfig, redis_url: str) -> Router:
    """The Router of a configuration; its cooldowns are shared with every process at `redis_url`."""
    routing = config.routing
    return Router(
        model_list=[_deployment(one, config.providers[one.provider]) for one in config.deployments],
        redis_url=redis_url,
        cache_kwargs={"socket_timeout": REDIS_PATIENCE, "socket_connect_timeout": REDIS_PATIENCE},
        routing_strategy=routing.routing_strategy,
        num_retries=routing.num_retries,
        model_group_retry_policy=_retry_policies(config),
        timeout=routing.timeout,
        stream_timeout=routing.stream_timeout,
        allowed_fails=routing.allowed_fails,
        cooldown_time=routing.cooldown_time,
        enable_tag_filtering=routing.enable_tag_filtering,
        fallbacks=_pairs(routing.fallbacks),
        context_window_fallbacks=_pairs(routing.context_window_fallbacks),
        content_policy_fallbacks=_pairs(routing.content_policy_fallbacks),
    )


def _deployment(deployment: Deployment, provider: Provider) -> dict[str, Any]:
    return {
        "model_name": deployment.model,
        "litellm_params": {
            "model": f"{provider.litellm_provider}/{deployment.upstream}",
            "api_key": provider.key(),
            "api_base": provider.base_url(),
            **deployment.params.model_dump(exclude_none=True),
        },
        "model_info": {
            # Cooldowns in Redis are kept by this id: it must be the same in every process.
            "id": deployment.id,
            "mode": deployment.kind,
            # For cost-based routing. Among litellm_params they would be registered anew, a
            # millisecond of it, at every call.
            "input_cost_per_token": float(deployment.price.input) / MICROS,
            "output_cost_per_token": float(deployment.price.output) / MICROS,
        },
    }


def _retry_policies(config: FleetConfig) -> dict[str, RetryPolicy]:
    """A model with one deployment does not wait out a rate limit: its fallback answers at once."""
    models = Counter(deployment.model for deployment in config.deployments)
    return {
        model: RetryPolicy(RateLimitErrorRetries=0) for model, count in models.items() if count == 1
    }


def _pairs(table: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    return [{model: others} for model, others in table.items()]
