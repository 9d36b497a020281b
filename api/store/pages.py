"""Pages of a tenant's objects, as OpenAI's lists have them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
#: Objects that are read together.
_CHUNK = 200


class PageQuery(NamedTuple):
    """Which part of a list a client asks for."""

    #: Most objects.
    limit: int
    #: The id before the page; None for the first page.
    after: str | None = None
    #: The oldest objects first.
    ascending: bool = False


class Page(NamedTuple):
    """Some objects of a list, and whether there are more."""

    objects: list[dict[str, Any]]
    has_more: bool

    def body(self) -> dict[str, Any]:
        """Return OpenAI's list."""
        return {
            "object": "list",
            "data": self.objects,
            "first_id": self.objects[0]["id"] if self.objects else None,
            "last_id": self.objects[-1]["id"] if self.objects else None,
            "has_more": self.has_more,
        }


async def read_page(
    client: Any,
    key: str,
    read: Callable[[Sequence[str]], Awaitable[Sequence[dict[str, Any] | None]]],
    query: PageQuery,
) -> Page | None:
    """Read a page of the objects whose ids a zset has by the time of their creation.

    Ids of objects that have expired are removed.

    Args:
        read: Returns the object of each id; None for an object that has expired, and an empty one
            for an object that the list leaves out.
        query: The part of the list.

    Returns:
        None if the query's `after` is not in the list.
    """
    limit, after, ascending = query
    start = 0
    if after is not None:
        rank = await (client.zrank if ascending else client.zrevrank)(key, after)
        if rank is None:
            return None
        start = rank + 1
    found: list[dict[str, Any]] = []
    while len(found) <= limit:
        part = await client.zrange(key, start, start + _CHUNK - 1, desc=not ascending)
        if not part:
            break
        ids = [one.decode() for one in part]
        objects = await read(ids)
        if gone := [one for one, value in zip(ids, objects, strict=True) if value is None]:
            await client.zrem(key, *gone)
        found += [value for value in objects if value]
        start += len(part) - len(gone)
    return Page(found[:limit], len(found) > limit)
