"""Arguments of the providers' SDKs, from LiteLLM's parameters of an account."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from config.provider import Provider
from primarch_fleet.errors import ConfigError

#: LiteLLM's default: the audience of tokens for Azure OpenAI.
AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"
_ENTRA_PARAMS = ("tenant_id", "client_id", "client_secret")

#: Returns a token, and asks for another when it has nearly expired.
TokenProvider = Callable[[], Awaitable[str]]


def client_options(provider: Provider) -> dict[str, Any]:
    """Return what the OpenAI SDK's clients take besides key and address: headers, organization."""
    params = provider.params()
    headers = {**(params.get("headers") or {}), **(params.get("extra_headers") or {})}
    options = {"default_headers": headers or None, "organization": params.get("organization")}
    return {name: value for name, value in options.items() if value}


def azure_token(provider: Provider) -> TokenProvider | None:
    """Return what gives tokens of Entra ID, if the account has no key.

    Raises:
        ConfigError: A parameter of Entra ID is missing, or a variable is not set.
    """
    params = provider.params()
    if params.get("api_key"):
        return None
    if token := params.get("azure_ad_token"):
        return _fixed(str(token))
    if not any(name in params for name in _ENTRA_PARAMS):
        return None
    missing = [name for name in _ENTRA_PARAMS if not params.get(name)]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: missing; Entra ID needs it")
    tenant, client, secret = (str(params[name]) for name in _ENTRA_PARAMS)
    return _entra_id(tenant, client, secret, str(params.get("azure_scope") or AZURE_SCOPE))


def _fixed(token: str) -> TokenProvider:
    async def get() -> str:
        return token

    return get


def _entra_id(tenant: str, client: str, secret: str, scope: str) -> TokenProvider:
    from azure.identity import (  # noqa: PLC0415 - only for these accounts
        ClientSecretCredential,
        get_bearer_token_provider,
    )

    credential = ClientSecretCredential(tenant, client, secret)
    fetch = get_bearer_token_provider(credential, scope)

    async def get() -> str:
        return await asyncio.to_thread(fetch)

    return get
