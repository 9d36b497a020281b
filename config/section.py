"""What the sections of fleet.yaml have in common."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from primarch_fleet.money import Price

Kind = Literal["chat", "embedding"]


class Section(BaseModel):
    """A part of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Priced(Section):
    """A place that serves a model: what it costs is known, or it is declared to be free."""

    kind: Kind = "chat"
    price: Price
    #: It costs nothing, and its price may be left out. A price of 0 without it is an error.
    free: bool = False

    @model_validator(mode="before")
    @classmethod
    def _free_needs_no_price(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("free") is True and data.get("price") is None:
            return {**data, "price": {"input": "0", "output": "0"}}
        return data

    @model_validator(mode="after")
    def _price_is_known(self) -> Self:
        missing = self.kind == "chat" and "output" not in self.price.model_fields_set
        nothing = not (self.price.input or self.price.output)
        undeclared = nothing and not self.free
        for wrong, why in {
            "price.output: a model for chat has a price for what it writes": missing,
            "price: 0 is no price; say `free: true` of what costs nothing": undeclared,
            "free: it has a price; leave one of them out": self.free and not nothing,
        }.items():
            if why:
                raise ValueError(wrong)
        return self
