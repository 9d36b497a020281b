"""One LiteLLM Router a process, and what it answers as the fleet's completions."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import litellm
from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients
from litellm.router import Router, router_arguments
from litellm.router_config import build_router_config
from litellm.types.router import RetryPolicy

from config.fleet import Deployment, FleetConfig, Provider
from primarch_fleet.contract import (
    Completion,
    CompletionRequest,
    Receipt,
    Request,
    RoutingStrategy,
)
from primarch_fleet.errors import InvalidRequest, RequestFailed
from tasks.serving import RequestMetadata
from workers.observability import metrics
from workers.realtime.attempts import LOGGER, Attempts
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.errors import translate
from workers.realtime.router_host import RouterHost
from workers.realtime.stream_collector import Collector
from workers.stream_writer import Publish, StreamWriter

logger = logging.getLogger(__name__)

MICROS = 1_000_000
#: The strategies of requests that name none but say what they prefer.
PREFERRED: dict[str, RoutingStrategy] = {
    "speed": "latency-based-routing",
    "cost": "cost-based-routing",
}
#: Requests that wait for the same moment do not all come at it: the share by which they are late.
SPREAD = 0.1
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
        # Of OpenAI's client, for embeddings: it would wait for a Retry-After. The Router retries.
        litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]
        for name in ("LiteLLM", "LiteLLM Router"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if LOGGER not in litellm.callbacks:
            litellm.callbacks.append(LOGGER)
        self._router = build(config, redis_url)
        self._cooldowns = Cooldowns(self._router)
        self._streams = StreamWriter(redis_url)
        self._learning = {config.routing.routing_strategy}

    async def warm_up(self) -> None:
        """Have LiteLLM import what it needs for a call, seconds of it, before somebody waits."""
        chats = [one.model for one in self._config.deployments if one.kind == "chat"]
        for model in chats[:1]:
            await self._router.acompletion(model=model, messages=[], mock_response="ready")

    async def serve(self, request: Request, envelope: RequestMetadata) -> Completion:
        """One answer, from the first deployment that gives one; streamed if that is asked for.

        While all refuse, it waits until one may answer: `max_wait` seconds in all, and not beyond
        the deadline.

        Raises InvalidRequest (UnknownModel included; also for tags that no deployment of the model
        has), or ProviderError or a kind of it when no deployment answers, or one ends a stream
        before its answer is whole.
        """
        self._catalogue.model(request.model)
        if request.tags:
            self._check_tags(request)
        if not (isinstance(request, CompletionRequest) and request.stream):
            return await self._serve(request, envelope)
        if (request.n or 1) > 1:
            raise InvalidRequest(
                "n: LiteLLM does not tell where the second choice of a stream ends"
            )
        with self._streams.run(envelope.task_id) as publish:
            return await self._serve(request, envelope, publish)

    async def close(self) -> None:
        """Give the connections back, LiteLLM's too: it keeps them in a cache of the process."""
        await self._streams.close()
        store: Any = self._router.health().store
        self._router.retire()
        if self._config.routing.shared_state:
            await store.redis_cache.disconnect()
        clients: Any = litellm.in_memory_llm_clients_cache
        await close_litellm_async_clients()  # type: ignore[no-untyped-call]
        clients.flush_cache()

    def _check_tags(self, request: Request) -> None:
        """Raises InvalidRequest where LiteLLM would ignore tags, or where nobody ever has them."""
        if not self._config.routing.enable_tag_filtering:
            raise InvalidRequest("tags: this fleet does not go by them (enable_tag_filtering)")
        if not self._config.deployments_of(request.model, request.tags):
            raise InvalidRequest(f"tags: no deployment of {request.model!r} has all of these")

    def _strategy(self, request: Request) -> RoutingStrategy:
        default = self._config.routing.routing_strategy
        return request.routing_strategy or PREFERRED.get(request.cost_preference, default)

    def _learn(self, strategy: RoutingStrategy) -> None:
        """Have a strategy see all calls from now on; it knows only the ones that it sees.

        LiteLLM's proxy server shows them to a strategy that a request names, its Router does not.
        """
        if strategy not in self._learning:
            self._learning.add(strategy)
            selector = self._router._get_override_strategy_selector(strategy)
            if selector is not None:
                self._router._register_router_selector(selector)

    async def _serve(
        self, request: Request, envelope: RequestMetadata, publish: Publish | None = None
    ) -> Completion:
        attempts = Attempts()
        self._learn(self._strategy(request))
        response = await self._answer(request, envelope, attempts, publish)
        receipt = self._receipt(request, envelope, attempts, response)
        metrics.observe(receipt)
        metrics.observe_routing(receipt.strategy, request.tenant_id, attempts.routing or 0.0)
        return Completion(body=response.model_dump(), receipt=receipt)

    async def _answer(
        self,
        request: Request,
        envelope: RequestMetadata,
        attempts: Attempts,
        publish: Publish | None,
    ) -> Any:
        """LiteLLM's answer: it is asked again when somebody may answer, while there is time."""
        patience = self._config.routing.max_wait
        while True:
            attempts.failed.clear()
            try:
                return await self._call(request, attempts, publish)
            except Exception as error:
                pause = await self._pause(request, attempts, error)
                _end_if_cancelled()
                left = request.time_left()
                if pause is None or pause > min(patience, math.inf if left is None else left):
                    raise self._failure(error, pause, envelope) from None
            patience -= pause
            logger.info(
                "request waits %.1f s: no deployment answers now",
                pause,
                extra={"action": "request_waits", "task_id": envelope.task_id},
            )
            await asyncio.sleep(pause * random.uniform(1, 1 + SPREAD))  # noqa: S311

    async def _pause(self, request: Request, attempts: Attempts, error: Exception) -> float | None:
        """Seconds until it may be answered; None if nobody says when, or readers have a part."""
        if attempts.first_token is not None:
            return None
        models = self._config.routing.answers_for(request.model)
        deployments = {
            one.id for model in models for one in self._config.deployments_of(model, request.tags)
        }
        return await self._cooldowns.pause(deployments, attempts.failed, error)

    def _failure(
        self, error: Exception, pause: float | None, envelope: RequestMetadata
    ) -> RequestFailed:
        failure = translate(error, self._secrets, pause)
        logger.warning(
            "request failed: %s",
            failure.code,
            extra={"action": "request_failed", "task_id": envelope.task_id},
        )
        return failure

    async def _call(self, request: Request, attempts: Attempts, publish: Publish | None) -> Any:
        body = request.body() | {
            # Without the "&" LiteLLM goes to deployments tagged "default" where nobody has the tag.
            "metadata": {"tags": [f"&{tag}" for tag in request.tags]},
            "routing_strategy": self._strategy(request),
            **(fallbacks(self._config, request.tags) if request.tags else {}),
        }
        if not isinstance(request, CompletionRequest):
            return await self._router.aembedding(**body)
        if publish is None:
            return await self._router.acompletion(**body)
        return await self._collect(body, attempts, publish)

    async def _collect(self, body: dict[str, Any], attempts: Attempts, publish: Publish) -> Any:
        """A streamed answer put together."""
        collector = Collector(publish, attempts)
        stream = await self._router.acompletion(**body, stream_options={"include_usage": True})
        await collector.collect(stream)
        response: Any = litellm.stream_chunk_builder(collector.chunks, messages=body["messages"])
        response._hidden_params = {**stream._hidden_params, **response._hidden_params}
        return response

    def _receipt(
        self, request: Request, envelope: RequestMetadata, attempts: Attempts, response: Any
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
            strategy=self._strategy(request),
            simulated=self._config.providers[deployment.provider].simulated,
            attempts=max(1, len(attempts.at)),
            fallbacks=attempts.fallbacks(request.model),
            queue_wait=envelope.queue_wait,
            time_to_first_token=attempts.first_token,
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


def _end_if_cancelled() -> None:
    """LiteLLM swallows a cancellation that comes while it handles a failure."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def build(config: FleetConfig, redis_url: str) -> Router:
    """The Router of a configuration.

    It shares its cooldowns and usage with every process at `redis_url`, if `shared_state` is set.
    """
    routing = config.routing
    arguments = router_arguments(
        model_list=[_deployment(one, config.providers[one.provider]) for one in config.deployments],
        redis_url=redis_url if routing.shared_state else None,
        cache_kwargs={"socket_timeout": REDIS_PATIENCE, "socket_connect_timeout": REDIS_PATIENCE},
        routing_strategy=routing.routing_strategy,
        num_retries=routing.num_retries,
        model_group_retry_policy=_retry_policies(config),
        timeout=routing.timeout,
        stream_timeout=routing.stream_timeout,
        allowed_fails=routing.allowed_fails,
        cooldown_time=routing.cooldown_time,
        disable_cooldowns=routing.disable_cooldowns,
        # Chance may send every attempt to one deployment: the model's others are asked after it.
        enable_weighted_failover=True,
        enable_tag_filtering=routing.enable_tag_filtering,
        **fallbacks(config),
    )
    host = RouterHost()
    router = Router.from_config(build_router_config(arguments), host)
    host.cooldowns = Cooldowns(router)
    return router


def fallbacks(config: FleetConfig, tags: Iterable[str] = ()) -> dict[str, Any]:
    """The fallbacks that have deployments with all of these tags, as LiteLLM takes them.

    It would not send a request to another, but would try to for seconds.
    """
    tables = {
        name: [
            {model: [other for other in others if config.deployments_of(other, tags)]}
            for model, others in getattr(config.routing, name).items()
        ]
        for name in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
    }
    return {name: table or None for name, table in tables.items()}


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
    """The one deployment of a model is not asked again when it refuses and has a fallback.

    LiteLLM would, after a pause, when a 429 or 503 does not say when to come again.
    """
    models = Counter(deployment.model for deployment in config.deployments)
    never = RetryPolicy(RateLimitErrorRetries=0, ServiceUnavailableErrorRetries=0)
    return {model: never for model in config.routing.fallbacks if models[model] == 1}
