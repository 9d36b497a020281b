"""Which slots of a worker are reserved, and for which tenants."""

from collections import Counter

import pytest

from tests.support.clock import Clock
from workers.runtime.fetching.fair_share import ACTIVE_WINDOW_SECONDS, SlotReservation


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slots(clock: Clock) -> SlotReservation:
    return SlotReservation(clock)


def reserved(slots: SlotReservation, total: int, **held: int) -> int:
    return slots.free_slots(total, Counter(held)).reserved


def test_a_tenant_that_is_alone_can_use_all_slots(slots: SlotReservation) -> None:
    slots.record_message("hot")
    assert reserved(slots, 40, hot=39) == 0


def test_slots_are_reserved_while_a_tenant_with_few_requests_was_active_lately(
    slots: SlotReservation, clock: Clock
) -> None:
    slots.record_message("hot")
    slots.record_message("quiet")
    assert reserved(slots, 40, hot=39) == reserved(slots, 40, hot=32, quiet=7) == 8
    clock.now += ACTIVE_WINDOW_SECONDS - 1
    slots.record_message("hot")
    assert reserved(slots, 40, hot=39) == 8
    clock.now += 1
    assert reserved(slots, 40, hot=39) == 0


def test_tenants_that_are_equally_busy_can_use_all_slots(slots: SlotReservation) -> None:
    for tenant in ("a", "b", "c"):
        slots.record_message(tenant)
    assert reserved(slots, 40, a=14, b=13, c=13) == 0


def test_a_tenant_that_holds_a_fifth_of_the_slots_has_none_reserved(
    slots: SlotReservation,
) -> None:
    slots.record_message("quiet")
    assert reserved(slots, 40, hot=32, quiet=7) == 8
    assert reserved(slots, 40, hot=32, quiet=8) == 0


@pytest.mark.parametrize(("total", "part"), [(1, 0), (2, 1), (5, 1), (6, 2), (500, 100)])
def test_a_fifth_of_the_slots_is_reserved_but_never_all(
    slots: SlotReservation, total: int, part: int
) -> None:
    slots.record_message("quiet")
    assert reserved(slots, total, hot=total) == part


def test_free_slots_and_held_slots_are_counted(slots: SlotReservation) -> None:
    assert slots.free_slots(40, Counter(hot=30)) == (10, 0, {"hot": 30})
    slots.record_message("quiet")
    held = Counter(hot=30, quiet=1)
    assert slots.free_slots(40, held) == (9, 8, {"hot": 30, "quiet": 1})


def test_a_worker_without_a_limit_reserves_nothing(slots: SlotReservation) -> None:
    slots.record_message("quiet")
    free, part, _ = slots.free_slots(0, Counter(hot=1000))
    assert free > 10**9
    assert part == 0
