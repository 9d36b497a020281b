"""Which places of a worker are kept, and for whom."""

import json
from collections import Counter

import pytest

from tests.support.clock import Clock
from workers.runtime.fair_share import ACTIVE_WINDOW_SECONDS, SlotReservation


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def places(clock: Clock) -> SlotReservation:
    return SlotReservation(clock)


def kept(places: SlotReservation, total: int, **held: int) -> int:
    return int(places.arguments(total, Counter(held))[1])


def test_a_tenant_that_is_alone_has_all_places(places: SlotReservation) -> None:
    places.record_message("hot")
    assert kept(places, 40, hot=39) == 0


def test_a_part_is_kept_while_somebody_with_less_was_there_lately(
    places: SlotReservation, clock: Clock
) -> None:
    places.record_message("hot")
    places.record_message("quiet")
    assert kept(places, 40, hot=39) == kept(places, 40, hot=32, quiet=7) == 8
    clock.now += ACTIVE_WINDOW_SECONDS - 1
    places.record_message("hot")
    assert kept(places, 40, hot=39) == 8
    clock.now += 1
    assert kept(places, 40, hot=39) == 0


def test_tenants_that_are_as_busy_as_each_other_have_all_places(places: SlotReservation) -> None:
    for tenant in ("a", "b", "c"):
        places.record_message(tenant)
    assert kept(places, 40, a=14, b=13, c=13) == 0


@pytest.mark.parametrize(("total", "part"), [(1, 0), (2, 1), (5, 1), (6, 2), (500, 100)])
def test_the_part_is_a_fifth_but_never_all(places: SlotReservation, total: int, part: int) -> None:
    places.record_message("quiet")
    assert kept(places, total, hot=total) == part


def test_who_holds_what_is_told_when_it_matters(places: SlotReservation) -> None:
    assert places.arguments(40, Counter(hot=30)) == [10, 0, "{}"]
    places.record_message("quiet")
    free, part, held = places.arguments(40, Counter(hot=30, quiet=1))
    assert (free, part, json.loads(str(held))) == (9, 8, {"hot": 30, "quiet": 1})


def test_a_worker_without_a_limit_keeps_nothing(places: SlotReservation) -> None:
    places.record_message("quiet")
    free, part, _ = places.arguments(0, Counter(hot=1000))
    assert int(free) > 10**9
    assert part == 0
