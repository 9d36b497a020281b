"""Which parameters of the Responses API LiteLLM hands on to a provider.

Providers that have the API get the request as it is. For the others LiteLLM translates the request
into a chat, and leaves out what a chat does not have without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, wraps
from typing import Any

from litellm import get_supported_openai_params
from litellm.llms.base_llm.responses.transformation import BaseResponsesAPIConfig
from litellm.responses.litellm_completion_transformation.transformation import (
    LiteLLMCompletionResponsesConfig,
)
from litellm.types.llms.openai import ResponsesAPIRequestParams
from litellm.utils import ProviderConfigManager

from config.price_list import find_entry
from primarch_fleet.requests import ResponsesRequest
from workers.realtime.dropped_parameters import dropped_parts, part_kind, tool_type

Json = dict[str, Any]

#: What LiteLLM's function for responses has an argument for. It leaves out everything else.
ARGUMENTS = frozenset(ResponsesAPIRequestParams.__annotations__)
#: Parameters that LiteLLM refuses for models that are not in its list.
REFUSED_FOR_UNKNOWN_MODELS = frozenset({"reasoning"})
#: Parameters that LiteLLM's translation has only with the database of its proxy server.
NEEDS_DATABASE = frozenset({"previous_response_id"})
#: Tools that OpenAI runs, with the providers for which LiteLLM translates them. In a chat for other
#: providers it drops some, and hands on others as they are.
HOSTED_TOOLS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("apply_patch", "code_interpreter", "computer", "computer_use"), ()),
    **dict.fromkeys(("computer_use_preview", "file_search", "image_generation"), ()),
    **dict.fromkeys(("local_shell", "programmatic_tool_calling", "shell"), ()),
    **dict.fromkeys(("web_search_2025_08_26", "web_search_preview_2025_03_11"), ()),
    **dict.fromkeys(("mcp", "tool_search"), ("anthropic",)),
}
#: In place of a role: an item that is no message.
ITEM = "item"
#: Types of items that LiteLLM has in each chat, or that only their own provider can read.
CHAT_ITEMS = ("compaction", "function_call", "function_call_output", "reasoning")
#: Types of parts that are text in each chat.
TEXT_PARTS = ("input_text", "output_text", "refusal", "summary_text", "text")
_messages_of_chat: Any = LiteLLMCompletionResponsesConfig.transform_responses_api_input_to_messages
_tools_of_chat = (
    LiteLLMCompletionResponsesConfig.transform_responses_api_tools_to_chat_completion_tools
)
#: Types of `tool_choice` that LiteLLM translates.
TOOL_CHOICES = frozenset({"auto", "none", "required", "any", "tool", "function", "custom"})


def omit_missing_inputs() -> None:
    """Have LiteLLM send no `input` for a request without one; calling this again changes nothing.

    A request that names a stored prompt or conversation may have none. LiteLLM would send null.
    """
    config: Any = BaseResponsesAPIConfig
    normalize = config.normalize_responses_api_request_dict
    if hasattr(normalize, "__wrapped__"):
        return

    @wraps(normalize)
    def without_null(data: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = normalize(data)
        if body.get("input", "") is None:
            del body["input"]
        return body

    config.normalize_responses_api_request_dict = staticmethod(without_null)


@cache
def has_responses(provider: str, model: str) -> bool:
    """Return whether LiteLLM calls a provider's own Responses API for a model."""
    return ProviderConfigManager.get_provider_responses_api_config(provider, model) is not None


def dropped(provider: str, model: str, names: Iterable[str]) -> frozenset[str]:
    """Return those of a request's parameters that LiteLLM would leave out or refuse.

    Args:
        provider: LiteLLM's name of the provider.
        model: The provider's name of the model.
        names: The parameters that the request has.
    """
    return frozenset(names) - _handed_on(provider, model)


def chat_tools(provider: str, model: str, tools: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments that LiteLLM makes of tools for a chat, by what errors call the tools.

    Args:
        provider: LiteLLM's name of the provider, which has no Responses API.
        model: The provider's name of the model.
        tools: The tools of a request.
    """
    supported = get_supported_openai_params(model, custom_llm_provider=provider)
    arguments: dict[str, dict[str, Any]] = {}
    for tool in tools:
        kind = tool_type(tool)
        made: dict[str, Any] = {}
        if provider in HOSTED_TOOLS.get(kind, (provider,)):
            own, search = _tools_of_chat([tool])
            has_search = supported is None or "web_search_options" in supported
            made = {"tools": own} if own else {}
            made |= {"web_search_options": search} if search is not None and has_search else {}
        arguments[f"tools of type {kind}"] = made
    return arguments


def drops_tool_choice(choice: Any, arguments: Iterable[dict[str, Any]]) -> bool:
    """Return whether LiteLLM leaves out a `tool_choice`, or refuses it with its content.

    Args:
        choice: The value.
        arguments: The arguments that LiteLLM makes of the tools.
    """
    if isinstance(choice, dict) and choice.get("type") not in TOOL_CHOICES:
        return True
    return bool(arguments) and not any("tools" in made for made in arguments)


def special_items(request: ResponsesRequest) -> Iterator[tuple[tuple[str, str], Json]]:
    """Yield what of an input a chat may not have.

    Yields:
        Items that are no messages by ITEM and their type, parts of messages by the role and what
        their fate depends on; and the item or part itself.
    """
    references = request.references()
    items = () if isinstance(request.input, str) else request.input or ()
    for item in map(dict, items):
        kind = "item_reference" if item in references else item.get("type") or "message"
        if kind not in ("message", *CHAT_ITEMS):
            yield (ITEM, str(kind)), item
        content = item.get("content") if kind == "message" else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") not in TEXT_PARTS:
                by_id = part.get("file_id") and not part.get("file_data")
                suffix = " with file_id" if by_id else ""
                yield (str(item.get("role")), f"{part.get('type')}{suffix}"), part


def dropped_items(call: Json, items: Mapping[tuple[str, str], Json]) -> frozenset[str]:
    """Return what errors call the items and parts that a chat would not have. Blocks for LiteLLM.

    Args:
        call: The arguments of LiteLLM's function for chats without messages.
        items: What `special_items` yields.
    """
    return frozenset(
        f"input: {'items' if role == ITEM else 'parts'} of type {kind}"
        for (role, kind), item in items.items()
        if (_is_lost(item) if role == ITEM else _drops_part(call, role, item))
    )


def _is_lost(item: Json) -> bool:
    alone: Json = {"role": "user", "content": "x"}
    return len(_messages_of_chat([alone, item], {})) == 1


def _drops_part(call: Json, role: str, part: Json) -> bool:
    text: Json = {"type": "input_text", "text": "x"}
    (message,) = _messages_of_chat([{"role": role, "content": [text, part]}], {})
    of_chat: Json = dict(message)["content"][-1]
    if of_chat.get("image_url") and not part.get("image_url"):
        return True  # of a picture's file_id, LiteLLM makes an address without text
    return bool(dropped_parts(call, {(role, part_kind(of_chat)): of_chat}))


@cache
def _handed_on(provider: str, model: str) -> frozenset[str]:
    if not has_responses(provider, model):
        supported = LiteLLMCompletionResponsesConfig.get_supported_openai_params(model)
        return frozenset(supported) - NEEDS_DATABASE
    name = model.removeprefix(f"{provider}/")
    return ARGUMENTS if find_entry(provider, name) else ARGUMENTS - REFUSED_FOR_UNKNOWN_MODELS
