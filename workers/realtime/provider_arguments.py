"""What the arguments of a call depend on the provider for: who gets OpenAI's body, and of what."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import litellm
from litellm.constants import openai_compatible_providers

from primarch_fleet.requests.defaults import is_default

Json = dict[str, Any]

#: Providers that get OpenAI's body: LiteLLM hands on what is in `extra_body`.
OPENAI_BODY = {
    *("openai", "azure", "openrouter", "text-completion-openai"),
    *openai_compatible_providers,
}
#: Servers of OpenAI's API to whose embeddings LiteLLM would add a field `extra_body`, and whose
#: other parameters it would refuse. It calls them as it calls OpenAI.
OPENAI_SERVERS = {"hostinger_router", "llamafile", "lm_studio"}
#: Those that get OpenAI's body, and whose `encoding_format` LiteLLM refuses.
FLOATS_ONLY = {"fireworks_ai", "sambanova"}
#: Arguments of a call that are no parameters of its body, or that hold the prompt.
NO_PARAMETERS = {"model", "messages", "input", "stream", "stream_options", "metadata"}


def as_openai(call: Json) -> Json:
    """Return the arguments by which LiteLLM calls a server as OpenAI; none without an address."""
    account = {name: call.get(name) for name in ("api_base", "api_key")}
    model, _, key, base_url = litellm.get_llm_provider(call["model"], **account)
    called = {"model": f"openai/{model}", "custom_llm_provider": "openai"}
    return {**called, "api_base": base_url, "api_key": key} if base_url else {}


def needless(verb: str, names: Iterable[str], call: Json, provider: str) -> list[str]:
    """Return the parameters that say what holds without them, and that LiteLLM may refuse.

    A provider that gets OpenAI's body gets those that LiteLLM does not refuse: a server can take
    another value for granted.

    Args:
        verb: The verb of the request.
        names: The names in its body.
        call: The arguments of the call.
        provider: LiteLLM's name of the provider.
    """
    if verb not in ("complete", "embed"):
        return []
    found = [name for name in names if name not in NO_PARAMETERS and is_default(name, call[name])]
    if not found or provider not in OPENAI_BODY:
        return found
    if verb == "embed":
        return found if provider in FLOATS_ONLY else []
    model = call["model"].removeprefix(f"{provider}/")
    taken = _supported(model, provider, call["model_info"].get("base_model"))
    return [name for name in found if name not in taken | {*call.get("allowed_openai_params", ())}]


@lru_cache(1024)
def _supported(model: str, provider: str, base_model: str | None) -> frozenset[str]:
    """The parameters of chats that LiteLLM does not refuse."""
    names = litellm.get_supported_openai_params(model, provider, base_model=base_model)
    return frozenset(names or ())
