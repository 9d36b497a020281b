"""Answers the realtime lane's requests with a LiteLLM Router, one per process."""

from __future__ import annotations

import asyncio
import logging
import math
import random

import litellm

from config.fleet import FleetConfig
from config.inline_accounts import receipt_provider
from config.litellm_params import resolve
from config.provider import Deployment
from config.settings import settings
from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import (
    FleetError,
    InvalidRequest,
    ProviderUnavailable,
    RequestFailed,
)
from primarch_fleet.requests import Request, RoutingStrategy
from tasks.answer_usage import usage_of
from tasks.failure_reasons import Reason
from tasks.privacy import Privacy
from tasks.receipts import AnswerFacts, AnswerSource, RequestMetadata, build_receipt
from tasks.tracing import provider_name
from tasks.usage_meter import ProviderCall
from workers.observability import metrics
from workers.realtime.attempts import ATTEMPT_LOGGER, Attempts
from workers.realtime.bill import bill_nanousd
from workers.realtime.choice_hook import CHOICE_HOOK
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.deployment_choice import DeploymentChoice
from workers.realtime.deployment_observer import DeploymentObserver
from workers.realtime.errors import UNTRANSLATED, all_cooling_down, fault_of, mark, translate
from workers.realtime.finish_reasons import keep_native_reasons
from workers.realtime.flex_tier import allow_flex_tier
from workers.realtime.missing_usage import accept_missing_usages
from workers.realtime.provider_call import ProviderCalls
from workers.realtime.responses_parameters import omit_missing_inputs
from workers.realtime.router import (
    RouterAnswer,
    answer_of,
    build_router,
    close_router,
    fallbacks,
    metadata_argument,
    prompt_fallbacks,
    register_strategy,
    storing_deployment,
)
from workers.realtime.router_host import raise_if_cancelled
from workers.realtime.stream_collector import COLLECTORS
from workers.stream_writer import Publish, StreamWriter

logger = logging.getLogger(__name__)

#: The strategy for a request that names none but has a cost preference.
PREFERRED_STRATEGIES: dict[str, RoutingStrategy] = {
    "speed": "latency-based-routing",
    "cost": "cost-based-routing",
}
#: Retries that wait for the same moment are spread: each waits up to this share longer.
RETRY_JITTER = 0.1


class RealtimeServer:
    """Answers requests through the Router.

    Create it on the event loop on which it will serve.
    """

    def __init__(self, config: FleetConfig, redis_url: str) -> None:
        self._config = config
        self._deployments = {deployment.id: deployment for deployment in config.deployments}
        self._catalogue = config.catalogue()
        _configure_litellm(config)
        self._observer = DeploymentObserver(config, redis_url, self._paid_check)
        self._choice = DeploymentChoice(config, self._observer)
        self._router = build_router(config, redis_url, self._observer.on_call)
        privacy = Privacy.connect(config.requests, redis_url)
        self._provider_calls = ProviderCalls(privacy, config.requests.extra_headers)
        self._prompt_fallbacks = prompt_fallbacks(config)
        self._cooldowns = Cooldowns(self._router)
        self._streams = StreamWriter(redis_url, settings().stream_ttl)
        self._registered_strategies = {config.routing.routing_strategy}

    async def warm_up(self) -> None:
        """Make a mock call, so that LiteLLM's imports (seconds) do not delay the first request."""
        for deployment in self._config.deployments:
            if deployment.kind == "chat":
                await self._router.acompletion(
                    model=deployment.model, messages=[], mock_response="ready"
                )
                return

    def start(self) -> None:
        """Start to observe the deployments. Without it, nothing is measured or checked."""
        self._observer.start()

    async def _paid_check(self, deployment_id: str) -> None:
        await self._router.acompletion(
            model=deployment_id,
            messages=[{"role": "user", "content": "ping"}],
            max_tokens=1,
            num_retries=0,
            disable_fallbacks=True,
        )

    async def serve(self, request: Request, metadata: RequestMetadata) -> Completion:
        """Return the answer of the first deployment that gives one; publish it if streamed.

        If all deployments refuse, the request waits until one can answer: for at most
        `routing.max_wait` seconds in total, and not beyond its deadline.

        Raises:
            InvalidRequest: Unknown model, or tags that no deployment of the model has.
            ProviderError: No deployment answered, or a stream ended early; often a subclass.
        """
        self._catalogue.model(request.model)
        if request.tags:
            self._check_tags(request)
        if not request.streams:
            return await self._serve(request, metadata)
        if why := request.unsupported().get("realtime"):
            raise InvalidRequest(why)
        with self._streams.run(metadata.task_id) as publish:
            return await self._serve(request, metadata, publish)

    async def close(self) -> None:
        """Close all connections, those that LiteLLM caches for the process included."""
        await self._observer.close()
        await self._streams.close()
        await close_router(self._router, shared_state=self._config.routing.shared_state)

    def _check_tags(self, request: Request) -> None:
        """Raise InvalidRequest where LiteLLM would ignore tags, or no deployment has them."""
        if not self._config.routing.enable_tag_filtering:
            raise InvalidRequest("tags: not supported; set routing.enable_tag_filtering: true")
        if not self._config.deployments_of(request.model, request.tags):
            raise InvalidRequest(f"tags: no deployment of {request.model!r} has all of these tags")

    def _strategy(self, request: Request) -> RoutingStrategy:
        default = self._config.routing.routing_strategy
        return request.routing_strategy or PREFERRED_STRATEGIES.get(
            request.cost_preference, default
        )

    async def _serve(
        self, request: Request, metadata: RequestMetadata, publish: Publish | None = None
    ) -> Completion:
        attempts = Attempts(self._provider_call, _patience(request, metadata))
        allow_flex_tier(metadata.service_tier)
        strategy = self._strategy(request)
        if strategy not in self._registered_strategies:
            self._registered_strategies.add(strategy)
            register_strategy(self._router, strategy)
        answer = await self._call_until_answered(request, metadata, attempts, publish)
        receipt = self._receipt(request, metadata, attempts, answer)
        metrics.record_answer(receipt)
        metrics.observe_routing(receipt.strategy, request.tenant_id, attempts.routing_seconds)
        return Completion(body=answer.body, receipt=receipt)

    async def _call_until_answered(
        self,
        request: Request,
        metadata: RequestMetadata,
        attempts: Attempts,
        publish: Publish | None,
    ) -> RouterAnswer:
        """Call LiteLLM, and again when a deployment can answer, while there is time."""
        wait_left = self._config.routing.max_wait
        while True:
            attempts.failed_deployments.clear()
            try:
                return await self._call(request, attempts, publish)
            except FleetError as error:
                attempts.end_call(error)
                raise
            except Exception as error:
                attempts.end_call(error)
                delay = await self._retry_delay(request, attempts, error)
                raise_if_cancelled()
                time_left = request.time_left()
                deadline = math.inf if time_left is None else time_left
                if delay is None or delay > min(wait_left, deadline):
                    raise self._failure(error, delay, metadata) from None
            wait_left -= delay
            logger.info(
                "no deployment can answer now; retrying in %.1f s",
                delay,
                extra={"action": "retry_scheduled", "task_id": metadata.task_id},
            )
            await asyncio.sleep(delay * random.uniform(1, 1 + RETRY_JITTER))  # noqa: S311

    async def _retry_delay(
        self, request: Request, attempts: Attempts, error: Exception
    ) -> float | None:
        """Seconds until a deployment can answer; None if unknown, or if chunks are published."""
        if attempts.time_to_first_token is not None:
            return None
        deployment_ids = {
            deployment.id
            for model in self._config.routing.possible_models(request.model)
            for deployment in self._config.deployments_of(model, request.tags)
        }
        if all_cooling_down(error):
            fault = await self._cooldowns.account_fault(deployment_ids)
            if fault is not None:
                mark(error, fault)
        return await self._cooldowns.retry_delay(deployment_ids, attempts.failed_deployments, error)

    def _failure(
        self, error: Exception, retry_delay: float | None, metadata: RequestMetadata
    ) -> RequestFailed:
        failure = translate(error, retry_delay)
        logger.warning(
            "request failed: %s",
            failure.code,
            extra={"action": "request_failed", "task_id": metadata.task_id},
        )
        return failure

    async def _call(
        self, request: Request, attempts: Attempts, publish: Publish | None
    ) -> RouterAnswer:
        self._choice.begin(request)
        name, body = request.router_method, self._provider_calls.begin(request)
        arguments = body | {
            "model": self._storing_deployment(request)
            or self._config.routing.resolve_alias(request.model),
            # "&": without it, LiteLLM falls back to deployments tagged "default".
            metadata_argument(name): {"tags": [f"&{tag}" for tag in request.tags]},
            "routing_strategy": self._strategy(request),
            **(fallbacks(self._config, request.tags) if request.tags else self._prompt_fallbacks),
        }
        call = getattr(self._router, name)
        if publish is None:
            answer = answer_of(name, await call(**arguments))
            return answer._replace(body=request.normalized(answer.body))
        wants_usage = request.wants_usage
        collector = COLLECTORS[request.endpoint](publish, attempts, wants_usage=wants_usage)
        stream = await call(**arguments | collector.options(body))
        try:
            return await collector.collect(stream)
        except UNTRANSLATED as error:
            if fault_of(error).reason is not Reason.INVALID_REQUEST:
                raise
            # Without its text, which may quote the answer.
            why = f"LiteLLM cannot read its stream ({type(error).__name__})"
            raise ProviderUnavailable(f"the provider failed: {why}") from error

    def _storing_deployment(self, request: Request) -> str | None:
        """The deployment that has stored the response which the request continues.

        LiteLLM's own check for it would cost each call a millisecond.
        """
        previous = getattr(request, "previous_response_id", None)
        if previous is None:
            return None
        deployment_id = storing_deployment(previous)
        serving = self._config.deployments_of(request.model, request.tags)
        serving_ids = {deployment.id for deployment in serving}
        return deployment_id if deployment_id in serving_ids else None

    def _receipt(
        self, request: Request, metadata: RequestMetadata, attempts: Attempts, answer: RouterAnswer
    ) -> Receipt:
        body, hidden = answer
        deployment = self._deployments[hidden["model_id"]]
        source = AnswerSource(
            lane="realtime",
            provider=receipt_provider(deployment.provider),
            deployment=deployment.id,
            strategy=self._strategy(request),
            price=self._config.rates(deployment),
            list_price=self._catalogue.model(request.model).list_price,
            simulated=self._config.providers[deployment.provider].simulated,
        )
        asked = self._config.routing.resolve_alias(request.model)
        if self._storing_deployment(request) is not None:
            attempts.models.discard(answer.hidden["model_id"])  # it was called by its id
        usage = usage_of(body, request.prompt_size, deployment.media)
        attempts.meter.answer(usage)
        facts = AnswerFacts(
            model=body.get("model") or deployment.upstream,
            usage=usage,
            bill_nanousd=self._bill(deployment, answer, request),
            latency=attempts.elapsed,
            time_to_first_token=attempts.time_to_first_token,
            attempts=max(1, attempts.count),
            failed_attempts=attempts.meter.failed_attempts(request),
            fallbacks=attempts.fallbacks(asked),
            fallback_reason=attempts.fallback_reason(asked),
            dropped_parameters=ProviderCalls.dropped(deployment.id),
        )
        return build_receipt(request, metadata, source, facts)

    def _provider_call(self, deployment_id: str) -> ProviderCall:
        called = self._deployments[deployment_id]
        rates, provider = self._config.rates(called), receipt_provider(called.provider)
        account = self._config.providers[called.provider]
        return ProviderCall(
            called.id,
            called.upstream,
            rates,
            called.media,
            provider,
            provider_name(account.litellm_provider),
            self._config.has_own_bill(called),
        )

    def _bill(self, deployment: Deployment, answer: RouterAnswer, request: Request) -> int | None:
        """The provider's bill in nano-dollars, where it is more exact than the price list."""
        if not self._config.has_own_bill(deployment):
            return None
        litellm_dollars = answer.hidden.get("response_cost")
        usage = answer.body.get("usage") or {}
        return bill_nanousd(litellm_dollars, usage, streamed=request.streams)


def _patience(request: Request, metadata: RequestMetadata) -> float | None:
    """The seconds that the caller is still willing to wait, never beyond the deadline."""
    if request.max_latency is None:
        return None
    seconds = request.max_latency - (metadata.queue_wait or 0.0)
    time_left = request.time_left()
    return seconds if time_left is None else min(seconds, time_left)


def _configure_litellm(config: FleetConfig) -> None:
    """Set LiteLLM's process-wide options; calling this again changes nothing."""
    for name, value in config.litellm_settings.items():
        setattr(litellm, name, resolve(value))
    litellm.suppress_debug_info = True
    keep_native_reasons()
    accept_missing_usages()
    omit_missing_inputs()
    # The OpenAI client for embeddings would wait for a Retry-After; the Router does the retries.
    litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]
    for callback in (ATTEMPT_LOGGER, CHOICE_HOOK):
        if callback not in litellm.callbacks:
            litellm.callbacks.append(callback)
