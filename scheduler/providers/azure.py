"""Azure OpenAI's Global and Data Zone Batch.

https://learn.microsoft.com/azure/foundry/openai/how-to/batch. What it does otherwise than OpenAI:

- The model of a line is the name of a deployment, which has to be one for batches.
- A file is processed after its upload, and no batch is made of it before that:
  https://github.com/openai/openai-dotnet/issues/312. Told to, it forgets it after 14 to 30 days;
  a resource holds 10,000 such files, but 500 of others.
- Batches carry no metadata and serve no embeddings; more than 24 hours do not end them.
- Too many enqueued tokens are a 400 at creation in some regions, a failed batch in others.
- A batch without errors may have "" or a file of no bytes for its errors.
"""

from __future__ import annotations

import os
from typing import ClassVar, Self

import httpx
from openai import AsyncAzureOpenAI, AsyncOpenAI

from config.provider import Provider
from scheduler.providers.base import Capabilities, ProviderBatch
from scheduler.providers.errors import ProviderRefused
from scheduler.providers.openai import CHAT, DAY, OpenAIBatches, failures

#: LiteLLM reads the version for the realtime lane from the same variable.
VERSION = "AZURE_API_VERSION"
#: LiteLLM's names for the API without dated versions.
UNDATED = frozenset({"v1", "latest", "preview"})
#: What is said of a file that no batch can be made of yet.
UNPROCESSED = frozenset({"missing", "uploaded", "pending", "running"})


class AzureBatches(OpenAIBatches):
    """`BatchProvider` over the OpenAI SDK, for one Azure OpenAI resource and its key."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        endpoints=frozenset({CHAT}),
        max_requests=100_000,
        windows=frozenset({"24h"}),
        max_bytes=200_000_000,
        metadata=False,
        input_life=14 * DAY,
    )

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """The resource of the configuration, at the version that AZURE_API_VERSION says.

        A date takes the classic client; "v1", or nothing, the API without versions. Raises
        ConfigError without its key or its address.
        """
        resource, key = _resource(provider.required_base_url()), provider.key()
        version = os.environ.get(VERSION) or "v1"
        if version in UNDATED:
            return cls(AsyncOpenAI(api_key=key, base_url=f"{resource}/openai/v1/"))
        return cls(AsyncAzureOpenAI(api_key=key, azure_endpoint=resource, api_version=version))

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Order a batch of a file that is processed; one that is not yet counts as not found."""
        status = await self._status(file_id)
        if status in UNPROCESSED:
            raise ProviderRefused(f"Cannot find file {file_id} yet: it is {status}", 404)
        return await super().create(file_id, endpoint, window, intent)

    async def _status(self, file_id: str) -> str:
        try:
            with failures():
                return (await self._client.files.retrieve(file_id)).status
        except ProviderRefused as error:
            if error.status != 404:
                raise
            return "missing"


def _resource(address: str) -> str:
    """Where the resource is, of an address to which a path may be added as LiteLLM allows."""
    url = httpx.URL(address)
    return str(url.copy_with(path=url.path.partition("/openai")[0], query=None)).rstrip("/")
