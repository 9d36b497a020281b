"""The body of a call to OpenAI's API, as the arguments of a request."""

from __future__ import annotations

from typing import Any

from primarch_fleet.errors import InvalidRequest
from primarch_fleet.requests.base import FIELD_NAMES, ROUTING_FIELDS, Request


def arguments_of(kind: type[Request], body: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return the arguments of a request; parameters that OpenAI does not have are `extra_body`.

    Args:
        kind: The class of the request.
        body: The body, as a client of OpenAI's API sends it.
        path: What precedes a parameter's name in the message of an error.

    Raises:
        InvalidRequest: A parameter has the name of a field that OpenAI's API does not have.
    """
    arguments: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in body.items():
        field = FIELD_NAMES.get(name, name)
        if field in ROUTING_FIELDS:
            raise InvalidRequest(f"{path}{name}: no parameter of {kind.endpoint}; remove it")
        (arguments if field in kind.model_fields else others)[field] = value
    return arguments | ({"extra_body": others} if others else {})
