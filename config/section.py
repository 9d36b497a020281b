"""What the sections of fleet.yaml have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

#: A part of fleet.yaml as it is parsed, before it is checked.
Values = dict[str, Any]


class Section(BaseModel):
    """A part of fleet.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def merge(base: Values, override: Values) -> Values:
    """Return both, key by key at every level; `override` wins."""
    merged = {**base, **override}
    for key in base.keys() & override.keys():
        if isinstance(base[key], dict) and isinstance(override[key], dict):
            merged[key] = merge(base[key], override[key])
    return merged
