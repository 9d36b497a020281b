"""Builds the LiteLLM Router of a fleet configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import litellm
from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients
from litellm.responses.utils import ResponsesAPIRequestUtils
from litellm.router import Router, router_arguments
from litellm.router_config import build_router_config
from litellm.types.router import LiteLLM_Params, RetryPolicy
from pydantic import ValidationError

from config.fleet import FleetConfig
from config.provider import Deployment, Provider, call_params
from primarch_fleet.errors import ConfigError
from primarch_fleet.requests import RoutingStrategy
from primarch_fleet.validation import explain
from workers.realtime.accounts import Accounts
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.flex_tier import FlexTier
from workers.realtime.moderation import amoderation
from workers.realtime.router_host import RouterHost

#: How long a Redis that does not answer delays a call; LiteLLM's default is 5 s per call.
REDIS_TIMEOUT_SECONDS = 0.2
#: The part of a retry policy against errors that a pause would end.
NO_RETRY_LATER = {"RateLimitErrorRetries": 0, "ServiceUnavailableErrorRetries": 0}


def build_router(
    config: FleetConfig,
    redis_url: str,
    on_call: Callable[[str, float, Exception | None], None] = lambda *_: None,
) -> Router:
    """Build the Router of a configuration.

    With `shared_state`, it shares cooldowns and usage with all processes that use `redis_url`.
    """
    routing, policies = config.routing, _retry_policies(config)
    arguments = router_arguments(
        model_list=[_priced_entry(config, deployment) for deployment in config.deployments],
        redis_url=redis_url if routing.shared_state else None,
        cache_kwargs={
            "socket_timeout": REDIS_TIMEOUT_SECONDS,
            "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
        },
        routing_strategy=routing.routing_strategy,
        num_retries=routing.num_retries,
        timeout=routing.timeout,
        stream_timeout=routing.stream_timeout,
        allowed_fails=routing.allowed_fails,
        cooldown_time=routing.cooldown_time,
        disable_cooldowns=routing.disable_cooldowns,
        # Weighted choice can pick the same deployment for every attempt: try the others after it.
        enable_weighted_failover=True,
        # No other model answers a request that is itself at fault.
        fallback_on_unsupported_params=False,
        enable_tag_filtering=routing.enable_tag_filtering,
        **fallbacks(config),
        **{
            **routing.router_settings,
            "model_group_retry_policy": policies,
        },
    )
    host = RouterHost()
    host.timeout_retries = {
        model: policy.TimeoutErrorRetries or 0 for model, policy in policies.items()
    }
    router = Router.from_config(build_router_config(arguments), host)
    host.cooldowns = Cooldowns(router)
    host.accounts = Accounts(config, host.cooldowns)
    host.flex_tier = FlexTier(config)
    # The Router's own method for moderations has neither retries nor fallbacks.
    call = host.checked(amoderation)
    router.amoderation = router.factory_function(call, call_type="agenerate_content")
    host.on_call = on_call
    return router


def fallbacks(config: FleetConfig, tags: Iterable[str] = ()) -> dict[str, Any]:
    """The fallback tables in LiteLLM's form, with only the models that have all of `tags`.

    LiteLLM would spend seconds on a fallback model without the tags before it gives up.
    """
    tables = {
        name: [
            {model: [fallback for fallback in models if config.deployments_of(fallback, tags)]}
            for model, models in getattr(config.routing, name).items()
        ]
        for name in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
    }
    # Of the other two, LiteLLM takes only an empty table as an order to use no `fallbacks`.
    return tables | {"fallbacks": tables["fallbacks"] or None}


def prompt_fallbacks(config: FleetConfig) -> dict[str, Any]:
    """The tables for prompts that are themselves at fault.

    A call needs them even if they are empty: LiteLLM's Router forgets an empty table, and would
    answer a prompt that is too long by `fallbacks`.
    """
    tables = fallbacks(config)
    del tables["fallbacks"]
    return tables


def deployment_entry(deployment: Deployment, provider: Provider) -> dict[str, Any]:
    """Return a deployment in the form of the Router's `model_list`."""
    params = call_params(provider, deployment)
    try:
        LiteLLM_Params.model_validate(params)
    except ValidationError as error:
        raise ConfigError(
            f"deployments.{deployment.id}.litellm_params: LiteLLM refuses {explain(error)}"
        ) from None
    return {
        "model_name": deployment.model,
        "litellm_params": params | ({"tags": deployment.tags} if deployment.tags else {}),
        "model_info": {
            **deployment.model_info,
            # The key of cooldowns in Redis: it must be the same in every process.
            "id": deployment.id,
            "mode": deployment.kind,
        },
    }


def _priced_entry(config: FleetConfig, deployment: Deployment) -> dict[str, Any]:
    """A deployment with the prices that cost-based routing compares, in dollars a token.

    In `litellm_params`, LiteLLM would register them again at every call, which takes a millisecond.
    Where LiteLLM's own figure is the bill, they must not replace its rules.
    """
    entry = deployment_entry(deployment, config.providers[deployment.provider])
    if not config.has_own_bill(deployment):
        base = config.rates(deployment).base
        entry["model_info"] |= {
            "input_cost_per_token": float(base.input.scaleb(-6)),
            "output_cost_per_token": float(base.output.scaleb(-6)),
        }
    return entry


def _retry_policies(config: FleetConfig) -> dict[str, RetryPolicy]:
    """The retry policy of each model, by LiteLLM's names, from `router_settings`.

    A timeout is not repeated unless a policy says so: the provider may bill each try in full. A
    model with one deployment and a fallback has no retries on 429 and 503: LiteLLM would pause and
    retry that deployment when the error has no Retry-After.
    """
    settings = config.routing.router_settings
    general: Any = settings.get("retry_policy") or {}
    by_model: Any = settings.get("model_group_retry_policy") or {}
    deployment_counts = Counter(deployment.model for deployment in config.deployments)
    single = {model for model in config.routing.fallbacks if deployment_counts[model] == 1}
    return {
        model: RetryPolicy(
            **{
                "TimeoutErrorRetries": 0,
                **(NO_RETRY_LATER if model in single else {}),
                **(by_model.get(model) or general),
            }
        )
        for model in deployment_counts
    }


# Below: LiteLLM's undocumented API, as of the exact version that the lock file pins.


def register_strategy(router: Router, strategy: RoutingStrategy) -> None:
    """Let a strategy observe all calls of a Router, so that it learns latencies and usage.

    LiteLLM's proxy server does this for a strategy that a request names; its Router does not.
    """
    selector = router._get_override_strategy_selector(strategy)
    if selector is not None:
        router._register_router_selector(selector)


def storing_deployment(response_id: str) -> str | None:
    """Return the deployment that LiteLLM has put into the id of a response."""
    decode: Any = ResponsesAPIRequestUtils.decode_responses_api_response_id
    deployment_id: str | None = decode(response_id=response_id).get("model_id")
    return deployment_id


def hidden_params(response: Any) -> dict[str, Any]:
    """What LiteLLM records on a response or stream besides its body, `model_id` for example."""
    params: dict[str, Any] = response._hidden_params
    return params


class RouterAnswer(NamedTuple):
    """The body of an answer of the Router, and what LiteLLM records besides it."""

    body: dict[str, Any]
    hidden: dict[str, Any]


#: LiteLLM's types for chats and embeddings have defaults that are part of OpenAI's form. Its other
#: types have only the provider's fields if the unset ones are left out.
_DUMP_OPTIONS: dict[str, dict[str, Any]] = {"acompletion": {}, "aembedding": {}}
_PROVIDERS_OWN = {"mode": "json", "exclude_unset": True}


def answer_of(router_method: str, response: Any) -> RouterAnswer:
    """Return the answer in what a method of the Router returned."""
    options = _DUMP_OPTIONS.get(router_method, _PROVIDERS_OWN)
    return RouterAnswer(response.model_dump(**options), hidden_params(response))


def metadata_argument(router_method: str) -> str:
    """Return the argument in which a method of the Router takes what is said of a call."""
    return "metadata" if router_method in _DUMP_OPTIONS else "litellm_metadata"


async def close_router(router: Router, *, shared_state: bool) -> None:
    """Close the connections of a Router, and those that LiteLLM caches for the whole process."""
    store: Any = router.health().store
    router.retire()
    if shared_state:
        await store.redis_cache.disconnect()
    clients: Any = litellm.in_memory_llm_clients_cache
    await close_litellm_async_clients()  # type: ignore[no-untyped-call]
    clients.flush_cache()
