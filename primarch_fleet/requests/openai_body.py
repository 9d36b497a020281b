"""The body of a call to OpenAI's API, as the arguments of a request."""

from __future__ import annotations

import re
from typing import Any

from primarch_fleet.errors import InvalidRequest
from primarch_fleet.requests.base import FIELD_NAMES, ROUTING_FIELDS, Request

#: The field before the name of a parameter that OpenAI does not have: the body has it without.
_EXTRA_BODY = re.compile(r"(^|; )extra_body\.")


def request_from(
    kind: type[Request], body: dict[str, Any], fields: dict[str, Any], path: str = ""
) -> Request:
    """Return the request of a body; parameters that OpenAI does not have are its `extra_body`.

    Args:
        kind: The class of the request.
        body: The body, as a client of OpenAI's API sends it.
        fields: The fields that OpenAI's API does not have.
        path: What precedes the name of a field that the body must not have, in an error.

    Raises:
        InvalidRequest: A parameter is wrong, or has the name of such a field. The message names it
            as the body does.
    """
    try:
        return kind(**_arguments(kind, body, path), **fields)
    except InvalidRequest as error:
        raise type(error)(_EXTRA_BODY.sub(r"\1", str(error))) from None


def _arguments(kind: type[Request], body: dict[str, Any], path: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in body.items():
        field = FIELD_NAMES.get(name, name)
        if field in ROUTING_FIELDS:
            raise InvalidRequest(f"{path}{name}: no parameter of {kind.endpoint}; remove it")
        (arguments if field in kind.model_fields else others)[field] = value
    return arguments | ({"extra_body": others} if others else {})
