"""The lines of a batch's input file, and the ids that they carry. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple


class TranslatedRequest(NamedTuple):
    """A request in the form of its provider."""

    #: The path that answers it.
    endpoint: str
    body: dict[str, Any]
    #: Anthropic's beta features that the body needs.
    betas: frozenset[str] = frozenset()
    #: The provider's name for the model, which some bodies do not repeat.
    model: str = ""


def request_id(task_id: str) -> str:
    """Return the fleet's id of a task's request.

    It is a hash: Celery's task ids may be any text, a custom_id may not.
    """
    return hashlib.blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def custom_id(request: str, attempt: int) -> str:
    """Return a request's custom_id, unique in its file.

    It is at most 64 characters of [A-Za-z0-9_-], which every provider accepts.
    """
    return f"r-{request}-{attempt}"


def request_of(custom: str) -> str | None:
    """Return the request id in a custom_id; None if the fleet did not make it."""
    parts = custom.split("-")
    return parts[1] if len(parts) == 3 and parts[0] == "r" else None


def attempt_of(custom: str) -> int:
    """Return the attempt in a custom_id; 0 if the fleet did not make it."""
    attempt = custom.rpartition("-")[2]
    return int(attempt) if request_of(custom) is not None and attempt.isdecimal() else 0


def encode(line: dict[str, Any]) -> bytes:
    """Encode a line, with its newline.

    It is ASCII: some servers take U+2028 for the end of a line, and some count bytes otherwise.
    """
    return json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
