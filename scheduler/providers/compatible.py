"""Servers that implement OpenAI's Files and Batches API at an address of their own."""

from __future__ import annotations

from typing import ClassVar, Self

from openai import AsyncOpenAI

from config.provider import Provider
from scheduler.providers.base import Capabilities
from scheduler.providers.credentials import client_options
from scheduler.providers.openai import OpenAIBatches

#: What LiteLLM sends to a server that needs no key.
NO_KEY = "fake-api-key"


class CompatibleBatches(OpenAIBatches):
    """A gateway in front of vLLM (vLLM itself has no batches), such as llm-d's; needs `api_base`.

    Uses only the first version of the API: not every server can expire a file.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(max_requests=50_000, max_bytes=200_000_000)

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account, with or without a key.

        Raises ConfigError without its address.
        """
        key, options = provider.params().get("api_key") or NO_KEY, client_options(provider)
        return cls(AsyncOpenAI(api_key=key, base_url=provider.required_base_url(), **options))


class GroqBatches(OpenAIBatches):
    """Groq: only chat, files of 100 MB at most: https://console.groq.com/docs/batch."""

    capabilities: ClassVar[Capabilities] = Capabilities(max_requests=50_000, max_bytes=100_000_000)

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account. Raises ConfigError when its key is not set."""
        base_url = provider.base_url() or "https://api.groq.com/openai/v1"
        options = client_options(provider)
        return cls(AsyncOpenAI(api_key=provider.key(), base_url=base_url, **options))
