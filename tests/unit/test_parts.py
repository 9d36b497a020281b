"""How many items are split into parts."""

import pytest

from primarch_fleet.parts import in_parts, in_parts_by_bytes


def test_items_are_in_parts_of_a_size_and_the_last_part_has_the_rest() -> None:
    assert in_parts(iter("abcde"), 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert in_parts({}, 2) == []


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([3, 3, 4], [[3, 3, 4]]),
        ([3, 3, 5], [[3, 3], [5]]),
        ([11, 1, 12, 1], [[11], [1], [12], [1]]),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
    ],
)
def test_a_part_has_at_most_the_bytes_and_the_items_unless_one_item_is_larger(
    sizes: list[int], expected: list[list[int]]
) -> None:
    assert [*in_parts_by_bytes(zip(sizes, sizes, strict=True), 10, 3)] == expected
