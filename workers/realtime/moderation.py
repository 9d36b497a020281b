"""LiteLLM's call for moderations, without what the Router does itself."""

from __future__ import annotations

from typing import Any

import litellm
from litellm.main import openai_chat_completions


async def amoderation(**arguments: Any) -> Any:
    """Call `litellm.amoderation` once, within its timeout.

    LiteLLM would use a client of the OpenAI library that tries a call three times, without a limit
    of time.
    """
    client: Any = openai_chat_completions.get_openai_client(
        is_async=True,
        api_key=arguments.get("api_key"),
        api_base=arguments.get("api_base"),
        timeout=arguments["timeout"],
        max_retries=0,
        litellm_params=arguments,
    )
    return await litellm.amoderation(**arguments, client=client)
