"""Finds the parameters that LiteLLM would leave out of a provider's request without a word.

LiteLLM refuses some parameters that a provider does not have, and drops others. Only the request
that it builds tells: it is built with each parameter and without it, and never sent.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from litellm.types.utils import CallTypes
from litellm.utils import return_raw_request

from primarch_fleet.requests.defaults import is_default
from workers.realtime.offline import offline

Json = dict[str, Any]

#: Parameters with any text. LiteLLM tells only some kinds of text apart.
FREE_TEXT = {"user", "safety_identifier", "prompt_cache_key", "cache_salt", "stop"}
#: How models begin whose requests LiteLLM builds only with a token, which their calls need too.
NEED_TOKENS = ("vertex_ai", "sagemaker")
#: Parameters that are objects, of whose options LiteLLM translates some.
OBJECTS = ("reasoning_effort", "web_search_options")
#: In place of a number, so that it differs from any default.
STAND_INS: Mapping[type, Any] = {int: 4099, float: 0.4375}
#: Base64 data of small files.
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_AUDIO, _VIDEO, _PDF = "UklGRiQAAABXQVZF", "AAAAGGZ0eXBtcDQy", "JVBERi0xLjAK"
#: A small part of a message for each type whose content LiteLLM might read or fetch, and what of it
#: a provider gets.
SAMPLE_PARTS: Mapping[str, tuple[Json, str]] = {
    "image_url": ({"image_url": {"url": f"data:image/png;base64,{_PICTURE}"}}, _PICTURE),
    "input_audio": ({"input_audio": {"data": _AUDIO, "format": "wav"}}, _AUDIO),
    "audio_url": ({"audio_url": {"url": f"data:audio/wav;base64,{_AUDIO}"}}, _AUDIO),
    "video_url": ({"video_url": {"url": f"data:video/mp4;base64,{_VIDEO}"}}, _VIDEO),
    "file": (
        {"file": {"file_data": f"data:application/pdf;base64,{_PDF}", "filename": "a.pdf"}},
        _PDF,
    ),
    "file with file_id": ({"type": "file", "file": {"file_id": "file-sample"}}, "file-sample"),
    "document": (
        {"source": {"type": "base64", "media_type": "application/pdf", "data": _PDF}},
        _PDF,
    ),
}
_CUSTOM_CALL: Json = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "sample_input"}}
_CUSTOM_CALLS = "tool_calls of type custom"
#: What can stand in an assistant's message in place of its content: a sample, and what of the
#: sample a provider gets.
SAMPLE_FIELDS: Mapping[str, tuple[Json, str]] = {
    "refusal": ({"refusal": "I refuse"}, "I refuse"),
    "audio": ({"audio": {"id": "audio_sample"}}, "audio_sample"),
    _CUSTOM_CALLS: ({"tool_calls": [_CUSTOM_CALL]}, "sample_input"),
}
#: What errors call tools that are functions.
FUNCTIONS = "tools of type function"
#: Parameters of a chat that mean nothing without its `tools`.
NEED_TOOLS = {"tool_choice", "parallel_tool_calls"}
_TEXT: Json = {"type": "text", "text": "sample"}
_USER: Json = {"role": "user", "content": "x"}
_CALL: Json = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_CALLS: Json = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
#: The messages before and after one of a role, where it cannot stand alone.
_AROUND: Mapping[str, tuple[list[Json], list[Json]]] = {
    "assistant": ([_USER], [_USER]),
    "developer": ([], [_USER]),
    "system": ([], [_USER]),
    "tool": ([_USER, _CALLS], []),
}


def kind_of_value(name: str, value: Any) -> Any:
    """Return what a parameter's fate depends on: equal for values that share it."""
    if isinstance(value, str):
        if name not in FREE_TEXT:
            return value
        return "@" in value, any(map(str.isalpha, value))  # mail addresses and telephone numbers
    if name == "tools":
        return tuple(sorted(set(map(tool_type, value))))
    if name in OBJECTS and isinstance(value, dict):
        texts = {key: value[key] if isinstance(value[key], str) else "" for key in value}
        return tuple(sorted(texts.items()))
    if isinstance(value, dict):
        return value.get("type")
    return value if isinstance(value, bool) else type(value).__name__


def tool_type(tool: Json) -> str:
    """Return the type of a tool; where a provider's own tool has no type, its keys."""
    return str(tool.get("type") or ", ".join(sorted(tool)))


def may_be_left_out(name: str, value: Any) -> bool:
    """Return whether a provider without the parameter does what the value says."""
    return is_default(name, value) or (name, value) == ("reasoning_effort", "none")


def dropped_parameters(call_type: CallTypes, call: Json, names: Sequence[str]) -> frozenset[str]:
    """Return the names that have no effect on the request that LiteLLM builds. Blocks for it.

    Args:
        call: The arguments of LiteLLM's function without messages or input; parameters are at the
            top level or in `extra_body`.
        names: The parameters to look at.
    """
    stand_ins = {name: STAND_INS.get(type(value), value) for name, value in call.items()}
    whole = {name: stand_ins[name] if name in names else call[name] for name in call}
    sent = _request(call_type, whole)
    if sent is None:  # LiteLLM refuses the call by itself, and says why
        return frozenset()
    shown = sent.get("extra_body") or {}
    suspects = [name for name in names if name not in sent and name not in shown]
    base: Json = whole
    for name in names:
        base = _without(base, name)
    empty = _request(call_type, base) if suspects else None
    return frozenset(
        name
        for name in suspects
        if _request(call_type, _without(whole, name)) == sent
        and _request(call_type, _with(base, whole, name)) == empty
    )


def dropped_options(call: Json, names: Iterable[str]) -> frozenset[str]:
    """Return what errors call the options in OBJECTS that a chat would lose. Blocks for it.

    Args:
        call: The arguments of LiteLLM's function without messages.
        names: The parameters to look at.
    """
    objects = {name: call.get(name) for name in OBJECTS if name in names}
    dropped = set()
    for name, options in objects.items():
        if not isinstance(options, dict) or not options:
            continue
        sent = _request(CallTypes.completion, call)
        for option in options.keys() if sent else ():
            rest = {key: options[key] for key in options if key != option}
            is_needless = is_default(option, options[option])
            if not is_needless and _request(CallTypes.completion, {**call, name: rest}) == sent:
                dropped.add(f"{name}.{option}")
    return frozenset(dropped)


def dropped_tools(call: Json, tools: Mapping[str, Json]) -> frozenset[str]:
    """Return the tools of a chat that LiteLLM leaves out or cannot translate. Blocks for it.

    One tool can displace another, so each is left out of the whole in turn.

    Args:
        call: The arguments of LiteLLM's function without messages.
        tools: By what an error calls them, the arguments that a tool of each type makes; none for
            a tool that is known to be left out.

    Returns:
        What an error calls the tools.
    """
    if tools.keys() <= {FUNCTIONS}:
        return frozenset()
    about_tools = {"tools", "web_search_options", *NEED_TOOLS}
    base = {name: value for name, value in call.items() if name not in about_tools}

    def sent(*names: str) -> Json | None:
        arguments = [tools[name] for name in names]
        own = {name: value for one in arguments for name, value in one.items() if value is not None}
        every = [tool for one in arguments for tool in one.get("tools") or ()]
        body = _request(
            CallTypes.completion, {**base, **own, **({"tools": every} if every else {})}
        )
        return body and {name: value for name, value in body.items() if value != []}

    whole, empty = sent(*tools), sent()
    alone = {name: sent(name) for name in tools}
    if whole is None:  # LiteLLM says by itself what is wrong with a function
        broken = {name for name in tools if alone[name] is None and name != FUNCTIONS}
        return frozenset(name for name in tools if name in broken or not tools[name])
    return frozenset(
        name if alone[name] == empty else f"{name} beside the other tools"
        for name in tools
        if sent(*(other for other in tools if other != name)) == whole
    )


def part_kind(part: Json) -> str:
    """Return what the fate of a part of a message depends on: its type, and how a file is named."""
    file = part.get("file") if part["type"] == "file" else None
    by_id = isinstance(file, dict) and file.get("file_id") and not file.get("file_data")
    return "file with file_id" if by_id else str(part["type"])


def dropped_parts(call: Json, parts: Mapping[tuple[str, str], Json]) -> frozenset[str]:
    """Return what errors call the parts of messages that LiteLLM leaves out. Blocks for it.

    Args:
        parts: By the role of its message and its kind, a part of each kind.
    """
    return frozenset(
        f"messages: parts of type {kind}"
        for (role, kind), part in parts.items()
        if _drops_part(call, role, kind, part)
    )


def dropped_fields(call: Json, names: Iterable[str]) -> frozenset[str]:
    """Return what errors call those of SAMPLE_FIELDS that LiteLLM leaves out. Blocks for it."""
    dropped = set()
    for name in names:
        sample, data = SAMPLE_FIELDS[name]
        message = {"role": "assistant", "content": None, **sample}
        if _is_lost(call, [_USER, message, _USER], [_USER], data):
            dropped.add(f"messages: {name}")
    return frozenset(dropped)


def special_fields(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in SAMPLE_FIELDS of what an assistant's message has."""
    yield from (name for name in ("refusal", "audio") if message.get(name))
    if any(call.get("type") == "custom" for call in message.get("tool_calls") or ()):
        yield _CUSTOM_CALLS


def _drops_part(call: Json, role: str, kind: str, part: Json) -> bool:
    fields, data = SAMPLE_PARTS.get(kind, (part, ""))
    content = [_TEXT, {"type": kind, **fields}]
    return _is_lost(call, _conversation(role, content), _conversation(role, [_TEXT]), data)


def _is_lost(call: Json, messages: list[Json], plain: list[Json], data: str) -> bool:
    """Return whether LiteLLM leaves out what only `messages` have, or refuses it.

    LiteLLM's refusal of a part looks like an outage of the provider.

    Args:
        plain: The same messages without the part in question.
        data: A text of the part that the provider gets; "" if no such text is known.
    """
    body = _request(CallTypes.completion, call, messages)
    if body is not None and data:
        return data not in json.dumps(body, default=str)
    without = _request(CallTypes.completion, call, plain)
    return without is not None if body is None else body == without


def _conversation(role: str, content: list[Json]) -> list[Json]:
    """A conversation with one message of a role."""
    before, after = _AROUND.get(role, ([], []))
    message: Json = {"role": role, "content": content}
    if role == "tool":
        message["tool_call_id"] = _CALL["id"]
    return [*before, message, *after]


def _request(call_type: CallTypes, call: Json, messages: Sequence[Json] = (_USER,)) -> Json | None:
    """The body that LiteLLM would send; None if it refuses to."""
    prompt: Json = {"messages": copy.deepcopy(list(messages))}  # LiteLLM may change them
    if call_type is CallTypes.embedding:
        prompt = {"input": ["x"]}
    needs_token = str(call["model"]).startswith(NEED_TOKENS)
    with nullcontext() if needs_token else offline():
        answer = return_raw_request(call_type, {**call, **prompt})
    body: Any = answer.get("raw_request_body")
    return body if isinstance(body, dict) and not answer.get("error") else None


def _without(call: Json, name: str) -> Json:
    rest = {key: value for key, value in call.items() if key != name}
    if name in (rest.get("extra_body") or ()):
        extra = {key: value for key, value in rest["extra_body"].items() if key != name}
        rest["extra_body"] = extra
    return rest


def _with(base: Json, whole: Json, name: str) -> Json:
    if name in whole:
        return {**base, name: whole[name]}
    extra = {**(base.get("extra_body") or {}), name: whole["extra_body"][name]}
    return {**base, "extra_body": extra}
