"""Items that come while a group is being sent go together in the next one."""

from __future__ import annotations

import asyncio

import pytest

from tasks.grouped_calls import MAX_ITEMS, GroupedCalls


class Sender:
    """Records groups; sends a group when it is released."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.released = asyncio.Event()

    async def send(self, group: list[int]) -> None:
        self.groups.append(group)
        await self.released.wait()
        if -1 in group:
            raise ValueError


def test_items_go_in_order_and_together_with_those_that_wait() -> None:
    async def run() -> list[list[int]]:
        sender = Sender()
        calls = GroupedCalls(sender.send)
        first = calls.submit(1)
        while not sender.groups:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        later = [calls.submit(item) for item in (2, 3, 4)]
        sender.released.set()
        await asyncio.gather(first, *later)
        return sender.groups

    assert asyncio.run(run()) == [[1], [2, 3, 4]]


def test_a_group_has_at_most_so_many_items() -> None:
    async def run() -> list[int]:
        sender = Sender()
        sender.released.set()
        calls = GroupedCalls(sender.send)
        await asyncio.gather(*(calls.add(item) for item in range(2 * MAX_ITEMS + 1)))
        assert [item for group in sender.groups for item in group] == [*range(2 * MAX_ITEMS + 1)]
        return [len(group) for group in sender.groups]

    assert asyncio.run(run()) == [MAX_ITEMS, MAX_ITEMS, 1]


def test_the_error_of_a_group_is_that_of_its_items_only() -> None:
    async def run() -> list[BaseException | None]:
        sender = Sender()
        sender.released.set()
        calls = GroupedCalls(sender.send)
        errors = await asyncio.gather(calls.add(-1), calls.add(1), return_exceptions=True)
        await calls.add(2)
        return [*errors]

    assert [type(error) for error in asyncio.run(run())] == [ValueError, ValueError]


def test_a_cancelled_caller_does_not_keep_its_item_from_being_sent() -> None:
    async def run() -> list[list[int]]:
        sender = Sender()
        calls = GroupedCalls(sender.send)
        caller = asyncio.create_task(calls.add(1))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        sender.released.set()
        await calls.close()
        return sender.groups

    assert asyncio.run(run()) == [[1]]
