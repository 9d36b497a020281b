"""A process of the batch lane may be killed at any point: nothing is lost, nothing is done twice.

Real processes and SIGKILL, at every kill point: before and after each command that the process
sends to Redis and each request that it sends to the provider, see kill_points.py. A process is
killed at point 1, the next process at point 2, and so on until a process reaches its end. After
each kill other processes continue, and the end must be the same as without a kill.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from typing import NamedTuple

import pytest

from scheduler.store.batch_store import COMPLETION_GUARD_SECONDS
from tests.chaos.sandbox import ProcessEnd, Sandbox, Snapshot
from tests.chaos.workload import NAMES, Expected, all_answered


class Kill(NamedTuple):
    """The kill point at which a process was killed, and the problems in the end."""

    number: int
    point: str
    problems: list[str]


#: Runs a process, killed at the point of a number or not at all, and lets others continue. Returns
#: how the process ended, and the problems in the end.
Scenario = Callable[[Sandbox, int | None], tuple[ProcessEnd, list[str]]]


def kills(
    sandboxes: list[Sandbox], scenario: Scenario, first: int = 1, every: int = 1
) -> list[Kill]:
    """Run a scenario with every kill from a point on, or with some; the sandboxes share the work.

    Args:
        every: 1 for every point, 2 for every second point, and so on.
    """

    def share(number: int) -> Iterator[Kill]:
        for kill_at in count(first + number * every, len(sandboxes) * every):
            end, problems = scenario(sandboxes[number], kill_at)
            if end.status == 0:
                return
            assert end.status == -signal.SIGKILL, end
            yield Kill(kill_at, end.killed_at, problems)

    with ThreadPoolExecutor(len(sandboxes)) as threads:
        shares = threads.map(lambda number: list(share(number)), range(len(sandboxes)))
        return sorted(chain.from_iterable(shares))


def check(done: list[Kill], least: int) -> None:
    """Assert that no kill led to a problem, and that there were enough kills."""
    print(f"{len(done)} kill points, {len({kill.point for kill in done})} of them different")
    bad = [kill for kill in done if kill.problems]
    lines = (f"{number:4} {point}: {'; '.join(problems)}" for number, point, problems in bad)
    assert not bad, f"{len(bad)} of {len(done)}:\n" + "\n".join(lines)
    assert len(done) >= least


def check_all(sandboxes: list[Sandbox], scenario: Scenario, least: int) -> None:
    """Kill at every point of a scenario; the points of a run without a kill must be among them."""
    end, problems = scenario(sandboxes[0], None)
    assert not problems
    done = kills(sandboxes, scenario)
    check(done, least)
    assert {kill.point for kill in done} >= set(end.points)


def run_a_batch(parked: Snapshot, threads: int) -> Scenario:
    """A scheduler creates, submits, polls, reads and closes a batch.

    Args:
        threads: Concurrent completions.
    """

    def scenario(sandbox: Sandbox, kill_at: int | None) -> tuple[ProcessEnd, list[str]]:
        sandbox.restore(parked)
        end = sandbox.run("schedule", kill_at, threads=threads)
        if end.status:
            assert sandbox.run("schedule").status == 0
        return end, sandbox.problems(all_answered(NAMES))

    return scenario


def test_a_scheduler_killed_at_any_point_of_a_batch_loses_and_repeats_nothing(
    sandboxes: list[Sandbox],
) -> None:
    scenario = run_a_batch(sandboxes[0].park(NAMES), threads=1)
    scenario(sandboxes[0], None)  # Redis learns the scripts
    check_all(sandboxes, scenario, least=120)


def test_a_scheduler_killed_while_it_completes_many_requests_loses_and_repeats_nothing(
    sandboxes: list[Sandbox],
) -> None:
    scenario = run_a_batch(sandboxes[0].park(NAMES), threads=4)
    scenario(sandboxes[0], None)
    end, _ = scenario(sandboxes[0], None)
    first = next(number for number, point in enumerate(end.points, 1) if "begin" in point)
    # The order of the threads differs from run to run: every third point is as good as every one.
    check(kills(sandboxes, scenario, first, every=3), least=20)


@pytest.mark.parametrize("first", [(), ("schedule",)], ids=["again", "answered, and again"])
def test_a_worker_killed_at_any_point_of_parking_parks_once(
    sandboxes: list[Sandbox], first: tuple[str, ...]
) -> None:
    names = ["linked"]
    messages = sandboxes[0].enqueue(names)
    enqueued = sandboxes[0].snapshot()

    def scenario(sandbox: Sandbox, kill_at: int | None) -> tuple[ProcessEnd, list[str]]:
        sandbox.restore(enqueued)
        end = sandbox.run("park", kill_at, messages=messages)
        # A message is redelivered until it is acknowledged, perhaps much later.
        for role in [*first, "park", "schedule", "park", "schedule"]:
            assert sandbox.run(role, messages=messages).status == 0
        return end, sandbox.problems(all_answered(names))

    scenario(sandboxes[0], None)
    # Before and after the state is announced, before known requests are read, before and after the
    # request is parked.
    check_all(sandboxes, scenario, least=5)


ANSWERED = Expected({"both": "both", "plain": "plain"}, [("test.linked", ["both"])], [2])
CANCELLED = Expected({"both": "Cancelled", "plain": "plain"}, [("test.refused", ["both"])], [1, 2])


@pytest.mark.parametrize("turns", [0, 1], ids=["waiting", "in a batch"])
@pytest.mark.parametrize("again", [True, False], ids=["asked again", "not asked again"])
def test_an_operator_killed_at_any_point_of_a_cancellation_leaves_one_outcome(
    sandboxes: list[Sandbox], again: bool, turns: int
) -> None:
    parked = sandboxes[0].park(["both", "plain"])

    def scenario(sandbox: Sandbox, kill_at: int | None) -> tuple[ProcessEnd, list[str]]:
        sandbox.restore(parked)
        sandbox.run("schedule", turns=turns)
        end = sandbox.run("cancel", kill_at, tasks=["both"])
        seen = sandbox.outcome("both")
        sandbox.advance_time(COMPLETION_GUARD_SECONDS)
        if again:
            assert sandbox.run("cancel", tasks=["both"]).result == {"both": "cancelled"}
        assert sandbox.run("schedule").status == 0
        # An outcome that was visible after the kill is final.
        allowed = [CANCELLED] if again or seen == "Cancelled" else [CANCELLED, ANSWERED]
        return end, min(map(sandbox.problems, allowed), key=len)

    scenario(sandboxes[0], None)
    check_all(sandboxes, scenario, least=16)


def promoted(name: str) -> Expected:
    """Expect a request in the queue of the realtime lane, which no worker reads."""
    return Expected({name: "PARKED"}, [("realtime.complete", [name])], [0])


@pytest.mark.parametrize("seconds", [300, 50])
def test_a_scheduler_killed_at_any_point_of_a_promotion_promotes_once(
    sandboxes: list[Sandbox], seconds: int
) -> None:
    name = f"late-{seconds}"
    # With less time than the guard, a killed scheduler's request may miss its deadline.
    missed = (
        [Expected({name: "DeadlineExceeded"}, [], [0])]
        if seconds < COMPLETION_GUARD_SECONDS
        else []
    )

    def scenario(sandbox: Sandbox, kill_at: int | None) -> tuple[ProcessEnd, list[str]]:
        sandbox.park([name])
        end = sandbox.run("schedule", kill_at)
        if end.status:
            assert sandbox.run("schedule").status == 0
        allowed = [promoted(name), *(missed if end.status else [])]
        return end, min(map(sandbox.problems, allowed), key=len)

    scenario(sandboxes[0], None)
    check_all(sandboxes, scenario, least=10)
