"""Messages for input that pydantic rejects."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from primarch_fleet.validation import explain


class Item(BaseModel):
    size: int | list[int]

    @field_validator("size")
    @classmethod
    def _not_zero(cls, size: Any) -> Any:
        if size == 0:
            raise ValueError("must not be 0")
        return size


class Order(BaseModel):
    items: dict[str, Item]


def rejected(items: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Order(items=items)
    return caught.value


def test_a_message_names_the_path_of_the_field_and_not_its_value() -> None:
    message = explain(rejected({"a-b": {"size": "secret"}}))
    assert message.startswith("items.a-b.size")
    assert "secret" not in message


def test_the_error_of_a_validator_is_given_as_it_is() -> None:
    assert explain(rejected({"a": {"size": 0}})) == "items.a.size: must not be 0"


def test_the_members_of_a_union_are_left_out_of_the_path() -> None:
    assert "list[int]" not in explain(rejected({"a": {"size": None}}))


def test_equal_problems_are_listed_once_and_a_field_may_have_another_name() -> None:
    error = rejected({"a": {"size": 0}, "b": {"size": 0}})
    assert explain(error, lambda location: str(location[0])) == "items: must not be 0"
    assert explain(error, lambda _: "") == "must not be 0"
