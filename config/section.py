"""What the sections of fleet.yaml have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

#: A part of fleet.yaml as it is parsed, before it is checked.
Values = dict[str, Any]


class Section(BaseModel):
    """A part of fleet.yaml. Unknown keys are errors, and so are `.inf` and `.nan`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


def _check_name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("write a name on one line; it is empty or has a control character")
    return text


#: A name that is in receipts, logs, labels of metrics and keys of Redis.
Name = Annotated[str, AfterValidator(_check_name)]


def merge(base: Values, override: Values) -> Values:
    """Return both, key by key at every level; `override` wins."""
    merged = {**base, **override}
    for key in base.keys() & override.keys():
        if isinstance(base[key], dict) and isinstance(override[key], dict):
            merged[key] = merge(base[key], override[key])
    return merged
