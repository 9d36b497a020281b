"""Who runs batches for us: one module a provider, behind the seam in `base`."""

from __future__ import annotations

from scheduler.providers.anthropic import AnthropicBatches
from scheduler.providers.azure import AzureBatches
from scheduler.providers.base import BatchProvider
from scheduler.providers.compatible import CompatibleBatches, GroqBatches
from scheduler.providers.openai import OpenAIBatches

#: By the name that an entry of `providers` has as its `litellm_provider`.
PROVIDERS: dict[str, type[BatchProvider]] = {
    "anthropic": AnthropicBatches,
    "azure": AzureBatches,
    "groq": GroqBatches,
    "hosted_vllm": CompatibleBatches,
    "openai": OpenAIBatches,
}
