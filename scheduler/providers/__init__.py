"""Providers of batches: a module for each, behind the interface in `base`.

`lines` and `translator` write a request as a line of a batch file, in its provider's form.
"""

from __future__ import annotations

from scheduler.providers.anthropic import AnthropicBatches
from scheduler.providers.azure import AzureBatches
from scheduler.providers.base import BatchProvider
from scheduler.providers.compatible import CompatibleBatches, GroqBatches
from scheduler.providers.gemini import GeminiBatches
from scheduler.providers.openai import OpenAIBatches

#: By `litellm_provider` of an entry of `providers`.
PROVIDERS: dict[str, type[BatchProvider]] = {
    "anthropic": AnthropicBatches,
    "azure": AzureBatches,
    "gemini": GeminiBatches,
    "groq": GroqBatches,
    "hosted_vllm": CompatibleBatches,
    "openai": OpenAIBatches,
}
