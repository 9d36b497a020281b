"""0 lost, 0 duplicate jobs left running, 0 duplicate deliveries: whenever a process is killed.

Real processes, real SIGKILL, every moment: before and after each command that the process sends to
Redis and each request that it makes to the provider (moments.py). A process is killed at moment 1,
the next one at moment 2, and so on until one comes to its end. Each time somebody else goes on in
its place, and everything must be as if nobody had been killed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import pytest

from scheduler.store.store import COMPLETION_GUARD_SECONDS
from tests.chaos.life import Dump, End, World
from tests.chaos.workload import NAMES, Fate, answered


class Death(NamedTuple):
    """A moment at which a process was killed, and what was wrong in the end."""

    moment: int
    at: str
    wrongs: list[str]


#: Kills a process at a moment, or not at all; what is wrong when somebody else has gone on.
Life = Callable[[World, int | None], tuple[End, list[str]]]


def deaths(worlds: list[World], life: Life, first: int = 1, every: int = 1) -> list[Death]:
    """Every death that there is from a moment on, or some; each world takes its share."""

    def share(number: int) -> Iterator[Death]:
        for moment in count(first + number * every, len(worlds) * every):
            end, wrongs = life(worlds[number], moment)
            if end.status == 0:
                return
            assert end.status == -signal.SIGKILL, end
            yield Death(moment, end.died, wrongs)

    with ThreadPoolExecutor(len(worlds)) as threads:
        shares = threads.map(lambda number: list(share(number)), range(len(worlds)))
        return sorted(death for one in shares for death in one)


def check(found: list[Death], least: int) -> None:
    """All of them went well, and they were not too few."""
    print(f"{len(found)} moments, {len({death.at for death in found})} of them different")
    wrong = [death for death in found if death.wrongs]
    lines = (f"{moment:4} {at}: {'; '.join(wrongs)}" for moment, at, wrongs in wrong)
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(lines)
    assert len(found) >= least


def check_all(worlds: list[World], life: Life, least: int) -> None:
    """Kill at every moment of a life, of which there are some; those of a whole life are met."""
    whole, wrongs = life(worlds[0], None)
    assert not wrongs
    found = deaths(worlds, life)
    check(found, least)
    assert {death.at for death in found} >= set(whole.moments)


def life_of_a_scheduler(parked: Dump, at_once: int) -> Life:
    """That cuts, submits, polls, drains and closes a batch, so many completions at once."""

    def life(world: World, moment: int | None) -> tuple[End, list[str]]:
        world.restore(parked)
        end = world.live("schedule", moment, at_once=at_once)
        if end.status:
            assert world.live("schedule").status == 0
        return end, world.wrongs(answered(NAMES))

    return life


def test_a_scheduler_killed_at_any_point_of_a_batch_loses_and_repeats_nothing(
    worlds: list[World],
) -> None:
    life = life_of_a_scheduler(worlds[0].parked(NAMES), at_once=1)
    life(worlds[0], None)  # Redis gets to know the scripts
    check_all(worlds, life, least=120)


def test_a_scheduler_killed_while_it_completes_many_requests_loses_and_repeats_nothing(
    worlds: list[World],
) -> None:
    life = life_of_a_scheduler(worlds[0].parked(NAMES), at_once=4)
    life(worlds[0], None)
    whole, _ = life(worlds[0], None)
    first = next(at for at, what in enumerate(whole.moments, 1) if "begin" in what)
    # Threads make no two of these lives alike: all the moments of one are not more than some.
    check(deaths(worlds, life, first, every=3), least=20)


@pytest.mark.parametrize("first", [(), ("schedule",)], ids=["again", "answered, and again"])
def test_a_worker_killed_at_any_point_of_parking_parks_once(
    worlds: list[World], first: tuple[str, ...]
) -> None:
    names = ["linked"]
    messages = worlds[0].begin(names)
    sent = worlds[0].dump()

    def life(world: World, moment: int | None) -> tuple[End, list[str]]:
        world.restore(sent)
        end = world.live("park", moment, messages=messages)
        # Messages come again until they are acknowledged, and may come later still.
        for role in [*first, "park", "schedule", "park", "schedule"]:
            assert world.live(role, messages=messages).status == 0
        return end, world.wrongs(answered(names))

    life(worlds[0], None)
    # Before and after the state is announced, before known requests are read, before and after the
    # request is parked.
    check_all(worlds, life, least=5)


ANSWERED = Fate({"both": "both", "plain": "plain"}, [("test.linked", ["both"])], [2])
CANCELLED = Fate({"both": "Cancelled", "plain": "plain"}, [("test.refused", ["both"])], [1, 2])


@pytest.mark.parametrize("turns", [0, 1], ids=["waiting", "in a batch"])
@pytest.mark.parametrize("again", [True, False], ids=["asked again", "not asked again"])
def test_an_operator_killed_at_any_point_of_a_cancellation_leaves_one_outcome(
    worlds: list[World], again: bool, turns: int
) -> None:
    parked = worlds[0].parked(["both", "plain"])

    def life(world: World, moment: int | None) -> tuple[End, list[str]]:
        world.restore(parked)
        world.live("schedule", turns=turns)
        end = world.live("cancel", moment, tasks=["both"])
        seen = world.outcome("both")
        world.pass_time(COMPLETION_GUARD_SECONDS)
        if again:
            assert world.live("cancel", tasks=["both"]).result == {"both": "cancelled"}
        assert world.live("schedule").status == 0
        # Whoever looked when the operator was dead has seen the outcome that stays.
        fates = [CANCELLED] if again or seen == "Cancelled" else [CANCELLED, ANSWERED]
        return end, min(map(world.wrongs, fates), key=len)

    life(worlds[0], None)
    check_all(worlds, life, least=16)


def promoted(name: str) -> Fate:
    """It goes on, on the other lane, which is not here."""
    return Fate({name: "PARKED"}, [("realtime.complete", [name])], [0])


@pytest.mark.parametrize("seconds", [300, 50])
def test_a_scheduler_killed_at_any_point_of_a_promotion_promotes_once(
    worlds: list[World], seconds: int
) -> None:
    name = f"late-{seconds}"
    # Nobody may be there in time.
    missed = (
        [Fate({name: "DeadlineExceeded"}, [], [0])] if seconds < COMPLETION_GUARD_SECONDS else []
    )

    def life(world: World, moment: int | None) -> tuple[End, list[str]]:
        world.parked([name])
        end = world.live("schedule", moment)
        if end.status:
            assert world.live("schedule").status == 0
        fates = [promoted(name), *(missed if end.status else [])]
        return end, min(map(world.wrongs, fates), key=len)

    life(worlds[0], None)
    check_all(worlds, life, least=10)
