"""Azure OpenAI's Global and Data Zone Batch.

https://learn.microsoft.com/azure/foundry/openai/how-to/batch. The differences from OpenAI:

- The model of a line is the name of a deployment of a batch type.
- An input file is processed after its upload, and a batch can be created only then:
  https://github.com/openai/openai-dotnet/issues/312. A file can expire after 14 to 30 days; a
  resource holds 10,000 files that expire, but only 500 others.
- Batches carry no metadata and serve no embeddings. They may run longer than 24 hours.
- Too many enqueued tokens are a 400 at creation in some regions, a failed batch in others.
- A batch without errors may have "" or an empty file as its error file.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import httpx
from openai import AsyncAzureOpenAI, AsyncOpenAI

from config.provider import Provider
from scheduler.providers.base import Capabilities, ProviderBatch
from scheduler.providers.credentials import azure_token, client_options
from scheduler.providers.errors import ProviderRefused
from scheduler.providers.openai import DAY_SECONDS, OpenAIBatches, provider_errors

#: LiteLLM reads the version for the realtime lane from the same variable.
VERSION_VARIABLE = "AZURE_API_VERSION"
#: LiteLLM's names of the API without dated versions.
UNDATED_VERSIONS = frozenset({"v1", "latest", "preview"})
#: Statuses of a file that a batch cannot use yet.
UNPROCESSED = frozenset({"missing", "uploaded", "pending", "running"})


class AzureBatches(OpenAIBatches):
    """`BatchProvider` on the OpenAI SDK, for one Azure OpenAI resource."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        max_requests=100_000,
        windows=frozenset({"24h"}),
        max_bytes=200_000_000,
        metadata=False,
        input_ttl_seconds=14 * DAY_SECONDS,
    )

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured resource, at its `api_version` or that in AZURE_API_VERSION.

        A date selects the classic client; "v1", or no version, the API without dated versions.
        Raises ConfigError without its address, or without a key or the parameters of Entra ID.
        """
        resource, token = _resource_url(provider.required_base_url()), azure_token(provider)
        version = provider.params().get("api_version") or os.environ.get(VERSION_VARIABLE) or "v1"
        options = client_options(provider)
        if version in UNDATED_VERSIONS:
            key = token or provider.key()
            return cls(AsyncOpenAI(api_key=key, base_url=f"{resource}/openai/v1/", **options))
        credential: dict[str, Any] = (
            {"azure_ad_token_provider": token} if token else {"api_key": provider.key()}
        )
        options |= {"azure_endpoint": resource, "api_version": version, **credential}
        return cls(AsyncAzureOpenAI(**options))

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Create a batch. A file that is not processed yet counts as not found."""
        status = await self._file_status(file_id)
        if status in UNPROCESSED:
            raise ProviderRefused(f"Cannot find file {file_id} yet: it is {status}", 404)
        return await super().create(file_id, endpoint, window, intent)

    async def _file_status(self, file_id: str) -> str:
        try:
            with provider_errors():
                return (await self._client.files.retrieve(file_id)).status
        except ProviderRefused as error:
            if error.status != 404:
                raise
            return "missing"


def _resource_url(address: str) -> str:
    """The URL of the resource, of an address that may have a path, as LiteLLM allows."""
    url = httpx.URL(address)
    return str(url.copy_with(path=url.path.partition("/openai")[0], query=None)).rstrip("/")
