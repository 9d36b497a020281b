"""Active health checks: whether the accounts of the deployments answer, known to all workers.

A check lists the account's models, which costs nothing at the providers below. One worker of the
fleet checks all accounts once per interval. Requests avoid the deployments of an account whose last
two checks failed, as long as the model has another deployment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx
import litellm
import redis
from litellm.constants import openai_compatible_providers
from redis.asyncio import Redis

from config.fleet import FleetConfig
from config.provider import call_params
from config.routing import HealthCheckPolicy
from primarch_fleet.deployment_health import CHECKS_KEY, Health, read_health

logger = logging.getLogger(__name__)

#: Redis key that exists while the checks of an interval are done or under way.
DUE_KEY = "fleet:health_checks:done"
#: Seconds between two looks at the results of the others.
READ_SECONDS = 10.0
#: Checks that run at once.
MAX_PARALLEL_CHECKS = 10
#: Results are kept for so many intervals.
KEPT_INTERVALS = 3
#: Answers that say nothing of the account: it has no list of models, or limits the rate of checks.
UNKNOWN_STATUSES = {
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.NOT_IMPLEMENTED,
}

Params = Mapping[str, Any]


class Probe(NamedTuple):
    """The request that lists an account's models."""

    url: str
    headers: dict[str, str]


def _openai(params: Params) -> Probe:
    base, key = _base_and_key(params, "https://api.openai.com/v1")
    return Probe(f"{base}/models", {"Authorization": f"Bearer {key}"} if key else {})


def _azure(params: Params) -> Probe:
    base, key = _base_and_key(params, "")
    version = params.get("api_version") or litellm.AZURE_DEFAULT_API_VERSION
    token = params.get("azure_ad_token")
    headers = {"Authorization": f"Bearer {token}"} if token else {"api-key": str(key)}
    return Probe(f"{base}/openai/models?api-version={version}", headers)


def _anthropic(params: Params) -> Probe:
    base, key = _base_and_key(params, "https://api.anthropic.com")
    url = f"{base.removesuffix('/v1')}/v1/models"
    return Probe(url, {"x-api-key": str(key), "anthropic-version": "2023-06-01"})


def _gemini(params: Params) -> Probe:
    base, key = _base_and_key(params, "https://generativelanguage.googleapis.com")
    return Probe(f"{base}/v1beta/models", {"x-goog-api-key": str(key)})


def _ollama(params: Params) -> Probe:
    base, _ = _base_and_key(params, "http://localhost:11434")
    return Probe(f"{base}/api/tags", {})


#: How to list the models of an account, by LiteLLM's name of the provider; providers that speak
#: OpenAI's protocol are checked like OpenAI. Sources: the providers' API references, "list models".
PROBES: dict[str, Callable[[Params], Probe]] = {
    "openai": _openai,
    "azure": _azure,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
    "ollama_chat": _ollama,
    "hosted_vllm": _openai,
    **dict.fromkeys(openai_compatible_providers, _openai),
}


class HealthChecks:
    """The checks of one worker, and the results of the whole fleet. Use it on one loop.

    Args:
        client: Must decode responses.
        paid_check: Makes one call to a deployment, by its id, with one token of output; it raises
            if the call fails. For accounts without a free check.
    """

    def __init__(
        self,
        config: FleetConfig,
        policy: HealthCheckPolicy,
        client: Redis,
        paid_check: Callable[[str], Awaitable[object]],
    ) -> None:
        self._policy, self._redis, self._paid_check = policy, client, paid_check
        self._params = {
            deployment.provider: call_params(config.providers[deployment.provider], deployment)
            for deployment in config.deployments
        }
        self._deployments: dict[str, list[str]] = {}
        for deployment in config.deployments:
            self._deployments.setdefault(deployment.provider, []).append(deployment.id)
        self._http = httpx.AsyncClient(timeout=policy.timeout, follow_redirects=True)
        self._results: dict[str, Health] = {}
        #: Ids of the deployments that requests avoid.
        self.unhealthy: set[str] = set()
        #: Seconds of the last successful check, by deployment.
        self.probe_seconds: dict[str, float] = {}

    async def run(self) -> None:
        """Check when it is due and read the results, until the task is cancelled."""
        while True:
            try:
                if await self._redis.set(
                    DUE_KEY, "1", nx=True, px=round(self._policy.interval * 1000)
                ):
                    await self.check()
                await self.read()
            except redis.RedisError as error:
                logger.warning(
                    "health of deployments not shared: %s",
                    type(error).__name__,
                    extra={"action": "health_not_shared"},
                )
            await asyncio.sleep(min(READ_SECONDS, self._policy.interval))

    async def check(self) -> None:
        """Check every account once, and publish the results. Raises redis.RedisError."""
        await self.read()
        limit = asyncio.Semaphore(MAX_PARALLEL_CHECKS)

        async def limited(account: str) -> Health:
            async with limit:
                return await self._check(account)

        results = await asyncio.gather(*map(limited, self._params))
        fields = {
            account: json.dumps(result._asdict())
            for account, result in zip(self._params, results, strict=True)
        }
        if fields:
            client: Any = self._redis
            await client.hset(CHECKS_KEY, mapping=fields)
            await client.expire(CHECKS_KEY, round(KEPT_INTERVALS * self._policy.interval) + 1)

    async def read(self) -> None:
        """Take over the published results. Raises redis.RedisError."""
        client: Any = self._redis
        self._results = read_health(await client.hgetall(CHECKS_KEY))
        known = {account: self._results.get(account) for account in self._params}
        self.unhealthy = {
            id_
            for account, health in known.items()
            if health and health.is_unhealthy
            for id_ in self._deployments[account]
        }
        self.probe_seconds = {
            id_: health.seconds
            for account, health in known.items()
            if health and health.seconds is not None
            for id_ in self._deployments[account]
        }

    async def close(self) -> None:
        """Close the connections to the providers."""
        await self._http.aclose()

    async def _check(self, account: str) -> Health:
        """The result of one check; the count of failures continues from the last result."""
        params = self._params[account]
        provider = str(params["model"]).partition("/")[0]
        started = time.perf_counter()
        try:
            reason = await self._reason(account, provider, params)
        except Exception as error:
            reason = type(error).__name__
        if reason is None:
            return Health(0, "", time.perf_counter() - started)
        if reason == "":
            return Health(0, "not checked", None)
        failures = self._results.get(account, Health(0, "", None)).failures + 1
        logger.warning(
            "account %s: health check failed: %s",
            account,
            reason,
            extra={"action": "health_check_failed"},
        )
        return Health(failures, reason, None)

    async def _reason(self, account: str, provider: str, params: Params) -> str | None:
        """Why the account does not answer; None if it does, "" if it cannot be checked."""
        make_probe = PROBES.get(provider)
        if make_probe is not None:
            probe = make_probe(params)
            response = await self._http.get(probe.url, headers=probe.headers)
            if response.status_code in UNKNOWN_STATUSES:
                return ""
            return f"HTTP {response.status_code}" if response.is_error else None
        if self._policy.paid:
            await self._paid_check(self._deployments[account][0])
            return None
        return ""


def _base_and_key(params: Params, default: str) -> tuple[str, str | None]:
    """The base URL, without a slash at its end, and the API key that LiteLLM would use."""
    _, _, key, base = litellm.get_llm_provider(
        model=str(params["model"]), api_base=params.get("api_base"), api_key=params.get("api_key")
    )
    return (base or default).rstrip("/"), key or params.get("api_key")
