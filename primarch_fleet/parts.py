"""Splits what one command, script or read handles into parts, so that none is too large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_parts(items: Iterable[T], size: int) -> list[list[T]]:
    """Return the items in lists of a size. Items may be removed from their source meanwhile."""
    iterator = iter(list(items))
    return list(iter(lambda: list(islice(iterator, size)), []))


def in_parts_by_bytes(
    sizes: Iterable[tuple[T, int]], max_bytes: int, max_items: int | None = None
) -> Iterator[list[T]]:
    """Yield items, in their order, in lists of at most `max_bytes` and `max_items`.

    An item that is larger than `max_bytes` is a list of its own.

    Args:
        sizes: Each item and its bytes. It is read as the lists are.
        max_items: None for no limit.
    """
    part: list[T] = []
    part_bytes = 0
    for item, item_bytes in sizes:
        if part and (len(part) == max_items or part_bytes + item_bytes > max_bytes):
            yield part
            part, part_bytes = [], 0
        part.append(item)
        part_bytes += item_bytes
    if part:
        yield part
