"""Finds the parameters that LiteLLM would leave out of a provider's request without a word.

LiteLLM refuses some parameters that a provider does not have, and drops others. Only the request
that it builds tells: it is built with each parameter and without it, and never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from litellm.types.utils import CallTypes
from litellm.utils import return_raw_request

from primarch_fleet.requests.defaults import is_default

Json = dict[str, Any]

#: Parameters with any text. LiteLLM tells only some kinds of text apart.
FREE_TEXT = {"user", "safety_identifier", "prompt_cache_key", "cache_salt", "stop"}
#: In place of a number, so that it differs from any default.
STAND_INS: Mapping[type, Any] = {int: 4099, float: 0.4375}
#: A small part of a message for each type whose content LiteLLM might read or fetch.
_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_PDF = "data:application/pdf;base64,JVBERi0xLjAK"
SAMPLE_PARTS: Mapping[str, Json] = {
    "image_url": {"image_url": {"url": _PICTURE}},
    "input_audio": {"input_audio": {"data": "UklGRiQAAABXQVZF", "format": "wav"}},
    "audio_url": {"audio_url": {"url": "data:audio/wav;base64,UklGRiQAAABXQVZF"}},
    "video_url": {"video_url": {"url": "data:video/mp4;base64,AAAAGGZ0eXBtcDQy"}},
    "file": {"file": {"file_data": _PDF, "filename": "a.pdf"}},
    "document": {
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjAK"}
    },
    "thinking": {"thinking": "sample", "signature": "sample"},
    "redacted_thinking": {"data": "sample"},
    "refusal": {"refusal": "sample"},
}
#: Parts of answers, which the assistant's messages repeat.
ASSISTANT_PARTS = {"thinking", "redacted_thinking", "refusal"}
_TEXT: Json = {"type": "text", "text": "sample"}


def kind_of_value(name: str, value: Any) -> Any:
    """Return what a parameter's fate depends on: equal for values that share it."""
    if isinstance(value, str):
        return ("@" in value, value.isdigit()) if name in FREE_TEXT else value
    if isinstance(value, dict):
        return value.get("type")
    return value if isinstance(value, bool) else type(value).__name__


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


def dropped_parts(call: Json, parts: Mapping[str, Json]) -> frozenset[str]:
    """Return the types of message parts that LiteLLM leaves out. Blocks for it.

    Args:
        parts: A part of each type.
    """
    return frozenset(kind for kind, part in parts.items() if _drops_part(call, kind, part))


def _drops_part(call: Json, kind: str, part: Json) -> bool:
    sample = {"type": kind, **SAMPLE_PARTS[kind]} if kind in SAMPLE_PARTS else part
    role = "assistant" if kind in ASSISTANT_PARTS else "user"
    with_part, without = (
        _request(CallTypes.completion, call, [{"role": role, "content": content}])
        for content in ([_TEXT, sample], [_TEXT])
    )
    return with_part is not None and with_part == without


def _request(
    call_type: CallTypes, call: Json, messages: Sequence[Json] = ({"role": "user", "content": "x"},)
) -> Json | None:
    """The body that LiteLLM would send; None if it refuses to."""
    prompt: Json = {"input": ["x"]} if call_type is CallTypes.embedding else {"messages": messages}
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
