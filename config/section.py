"""What the sections of fleet.yaml have in common."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from primarch_fleet.contract import ModelKind
from primarch_fleet.money import Price

#: A part of fleet.yaml as it is parsed, before it is checked.
Values = dict[str, Any]


class Section(BaseModel):
    """A part of fleet.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Priced(Section):
    """Something that serves a model: it has a price, or it is declared to be free."""

    #: What the model does: `chat` answers conversations, `embedding` returns vectors.
    kind: ModelKind = "chat"
    #: Dollars per million tokens. Required unless `free` is true; a chat model needs both rates.
    price: Price
    #: The model costs nothing, and `price` may be left out. Without it a price of 0 is an error.
    free: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_in_free_price(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("free") is True and data.get("price") is None:
            return {**data, "price": {"input": "0", "output": "0"}}
        return data

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        costs_nothing = not (self.price.input or self.price.output)
        if self.kind == "chat" and "output" not in self.price.model_fields_set:
            raise ValueError("price.output: missing; a chat model needs a price for output tokens")
        if costs_nothing and not self.free:
            raise ValueError("price: must be greater than 0; set free: true for a free model")
        if self.free and not costs_nothing:
            raise ValueError("free: the model has a price; remove either free or price")
        return self


def merge(base: Values, override: Values) -> Values:
    """Return both, key by key at every level; `override` wins."""
    merged = {**base, **override}
    for key in base.keys() & override.keys():
        if isinstance(base[key], dict) and isinstance(override[key], dict):
            merged[key] = merge(base[key], override[key])
    return merged
