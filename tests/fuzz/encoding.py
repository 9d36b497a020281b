"""A message as text, and what can be read of it."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.fuzz.values import Raw

MAX_ID_BYTES = 4096


def to_json(value: Any) -> str:
    """Encode as JSON; a `Raw` as it is. Lone surrogates are escaped."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(k))}: {to_json(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


def encoded(body: Any) -> str:
    """A body as kombu writes it."""
    return base64.b64encode(to_json(body).encode()).decode()


def readable_id(text: bytes) -> str | None:
    """The id of the task that a producer may wait for; None if the message names none."""
    try:
        message = json.loads(text.decode(errors="replace"))
        headers, properties = message.get("headers"), message.get("properties")
    except (ValueError, RecursionError, AttributeError):
        return None
    values = [
        part.get(name)
        for part, name in ((headers, "id"), (properties, "correlation_id"))
        if isinstance(part, dict)
    ]
    return next((value for value in values if _is_id(value)), None)


def stores_no_result(text: bytes, silent_tasks: set[str]) -> bool:
    """Whether the message itself, or its task, asks for no result."""
    try:
        headers = json.loads(text.decode(errors="replace"))["headers"]
        return bool(headers.get("ignore_result")) or headers.get("task") in silent_tasks
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return False


def _is_id(value: object) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False
