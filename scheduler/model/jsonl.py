"""Encodes a batch's input file, a line a request, and the ids that its lines carry. Pure."""

from __future__ import annotations

import hashlib
import json

from primarch_fleet.requests import Request


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


def encode_line(custom: str, request: Request, upstream: str) -> bytes:
    """Encode a request's line, with its newline.

    Args:
        custom: The custom_id.
        upstream: The provider's name for the model.
    """
    body = {**request.body(), "model": upstream}
    line = {"custom_id": custom, "method": "POST", "url": request.endpoint, "body": body}
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
