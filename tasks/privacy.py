"""What providers and engines learn of a request's tenant and end user, as fleet.yaml says.

Names are replaced by keyed hashes: without the key, a provider can neither compute a hash nor
guess a name by trying. The key is FLEET_HASH_KEY. Without this variable, the first worker stores a
random key in Redis under HASH_KEY; workers that run write it again into a Redis that has lost it.
With another key, providers see other end users, and prefix caches start empty; nothing else depends
on it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Self

import redis

from config.requests import RequestPolicy
from config.settings import settings
from primarch_fleet import redis_support
from primarch_fleet.requests import Request

#: Redis key of the hash key, a string that does not expire.
HASH_KEY = "fleet:hash_key"
#: The fields in which providers take the id of an end user, by LiteLLM's name of the provider.
#: LiteLLM makes Anthropic's `metadata.user_id` of `user`.
#: https://platform.openai.com/docs/guides/safety-best-practices#safety-identifiers
#: https://learn.microsoft.com/azure/foundry/openai/reference (user)
#: https://docs.anthropic.com/en/api/messages (metadata.user_id)
#: https://openrouter.ai/docs/use-cases/user-tracking, https://console.groq.com/docs/api-reference
END_USER_FIELDS = {
    "openai": "safety_identifier",
    "azure": "user",
    "anthropic": "user",
    "openrouter": "user",
    "groq": "user",
}
#: The same for embeddings: https://platform.openai.com/docs/api-reference/embeddings/create
EMBEDDING_END_USER_FIELDS = {"openai": "user", "azure": "user"}
#: What keeps the separator of hashed names, a null character, out of the names themselves.
_ESCAPES = {0: "\1\2", 1: "\1\1"}
#: The local lane's engine in place of a provider.
ENGINE = "vllm"
#: Providers whose servers have vLLM's `cache_salt`.
SALTED = {ENGINE, "hosted_vllm"}


class Privacy:
    """Adds to requests what their provider may learn of tenant and end user.

    Args:
        policy: The `requests` section of fleet.yaml.
        key: The key of the hashes.
    """

    def __init__(self, policy: RequestPolicy, key: bytes) -> None:
        self._policy = policy
        self._key = key

    @classmethod
    def connect(cls, policy: RequestPolicy, url: str) -> Self:
        """Return the policy with the fleet's key at a Redis; create the key if there is none."""
        if configured := settings().hash_key:
            return cls(policy, configured.encode())
        with redis_support.once(url, text=False) as client:
            return cls(policy, redis_support.patiently(lambda: shared_key(client)))

    def fields(self, request: Request, provider: str) -> dict[str, Any]:
        """Return the fields that the body for a provider gets in addition.

        `safety_identifier` or `user` for the end user, unless the request sets one itself; and
        `cache_salt`, which includes the request's own.

        Args:
            provider: LiteLLM's name of the provider, or ENGINE.
        """
        return {**self._end_user(request, provider), **self._cache_salt(request, provider)}

    def _end_user(self, request: Request, provider: str) -> dict[str, str]:
        embeds = request.verb == "embed"
        field = (EMBEDDING_END_USER_FIELDS if embeds else END_USER_FIELDS).get(provider)
        own = {"user", "safety_identifier"} & request.model_fields_set
        if field is None or field not in type(request).model_fields or not request.user_id:
            return {}
        if own or self._policy.user_id == "omitted":
            return {}
        if self._policy.user_id == "plain":
            return {field: request.user_id}
        return {field: self._hash("user", request.tenant_id, request.user_id)}

    def _cache_salt(self, request: Request, provider: str) -> dict[str, str]:
        if provider not in SALTED:
            return {}
        own = str((request.extra_body or {}).get("cache_salt") or "")
        tenant = "" if self._policy.share_prefix_cache else request.tenant_id
        return {"cache_salt": self._hash("cache", tenant, own)} if own or tenant else {}

    def _hash(self, *parts: str) -> str:
        """64 hex digits, which is the most that OpenAI's safety_identifier takes."""
        message = "\0".join(part.translate(_ESCAPES) for part in parts)
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()


def shared_key(client: redis.Redis) -> bytes:
    """Return the key in a Redis; the first caller creates it.

    Args:
        client: Without `decode_responses`.
    """
    client.set(HASH_KEY, secrets.token_hex(32), nx=True)
    key: Any = client.get(HASH_KEY)
    return bytes(key)
