"""What events show of a request, and so Flower and `inspect`: names and costs, no prompt."""

from __future__ import annotations

import re
from typing import Any

from primarch_fleet.money import format_dollars
from primarch_fleet.protocol import HIDDEN_ARGUMENTS, lane_of
from primarch_fleet.requests.base import UNNAMED_TENANT
from tasks.failures import model_label, model_of

#: Longer names are cut.
MAX_NAME_CHARACTERS = 64


def of_arguments(task_name: str, args: Any, kwargs: Any = None) -> str:
    """Return the text in place of a task's arguments; HIDDEN_ARGUMENTS if it is no request.

    A model that the fleet does not have is not named: the text is whatever a producer wrote.

    Args:
        args: Of a message, so of any type.
        kwargs: The same.
    """
    positional = args if isinstance(args, list | tuple) else ()
    named = kwargs.values() if isinstance(kwargs, dict) else ()
    lane, body = lane_of(task_name), next(iter([*positional, *named]), None)
    if lane is None or not isinstance(body, dict):
        return HIDDEN_ARGUMENTS
    tenant = body.get("tenant_id") or UNNAMED_TENANT
    return f"model={model_label(model_of(body))} tenant={_name(tenant)} lane={lane}"


def of_result(value: object) -> str:
    """Return the text in place of a result: of an answer, of an error, or of anything else."""
    if not isinstance(value, dict):
        return HIDDEN_ARGUMENTS
    receipt = value.get("receipt")
    if isinstance(receipt, dict):
        names = {"model": "model", "provider": "provider", "tenant": "tenant_id", "lane": "lane"}
        parts = [f"{shown}={_name(receipt.get(field))}" for shown, field in names.items()]
        return " ".join([*parts, f"cost={format_dollars(int(receipt.get('cost_nanousd') or 0))}"])
    error = value.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return f"error={_name(code)}" if code else HIDDEN_ARGUMENTS


def _name(value: object) -> str:
    """A name on one line, without what a page or a log could take for something else."""
    return re.sub(r"[^\w.:/@+-]", "_", str(value))[:MAX_NAME_CHARACTERS]
