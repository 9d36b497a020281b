"""Redis may go back at any moment of a batch's life: nothing is lost, nothing is ordered twice.

The database is copied at a kill point of a scheduler (see kill_points.py), and taken back to that
copy at a later point: a few steps later, anywhere later, or when all is done. The scheduler dies
then, or lives on. Other processes continue, and the end must be the same as without a roll-back.

`make test` tries some of these moments, by a printed seed (ROLLBACK_SEED repeats them);
`make test-rollback` tries all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.chaos.sandbox import ProcessEnd, Sandbox, Snapshot
from tests.chaos.workload import NAMES, all_answered

#: Environment variables: the seed of a run to repeat, and how many moments are tried, or "all".
SEED, COUNT = "ROLLBACK_SEED", "ROLLBACKS"
#: Moments that one test of `make test` tries.
SAMPLED = 8
#: Steps after which a near roll-back happens.
NEAR_STEPS = 6


class RollBack(NamedTuple):
    """The database goes back from one point to an earlier one."""

    #: The kill point at which the database is copied.
    to: int
    #: The kill point at which it goes back; 0 when the scheduler has done everything.
    at: int


def moments(points: int, seed: int) -> Iterator[RollBack]:
    """Yield for each point a near roll-back to it, one from anywhere later, and one at the end."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    for to in range(1, points):
        yield RollBack(to, min(points, to + chance.randint(1, NEAR_STEPS)))
        yield RollBack(to, chance.randint(to + 1, points))
        yield RollBack(to, 0)


def roll_back(sandbox: Sandbox, parked: Snapshot, moment: RollBack, dies: bool) -> list[str]:
    """Roll the database back once in a batch's life; the problems in the end."""
    copies: list[Snapshot] = []
    pauses = {moment.to: lambda: copies.append(sandbox.snapshot())}
    sandbox.restore(parked)
    if not dies and moment.at:
        pauses[moment.at] = lambda: sandbox.roll_back(copies[0])
        end = sandbox.run("schedule", threads=1, pauses=pauses)
    else:
        end = sandbox.run("schedule", moment.at or None, threads=1, pauses=pauses)
        sandbox.roll_back(copies[0])
    problems = [] if dies or end.status == 0 else [f"exit {end.status}"]
    assert sandbox.run("schedule").status == 0
    return problems + sandbox.problems(all_answered(NAMES))


@pytest.mark.timeout(7200 if os.environ.get(COUNT) else 300)
@pytest.mark.parametrize("dies", [True, False], ids=["the scheduler dies", "the scheduler lives"])
def test_a_database_rolled_back_at_any_moment_orders_no_batch_twice_and_loses_nothing(
    sandboxes: list[Sandbox], dies: bool
) -> None:
    seed = int(os.environ.get(SEED) or random.randrange(1_000_000))  # noqa: S311
    parked = sandboxes[0].park(NAMES)
    for _ in range(2):  # Redis learns the scripts
        sandboxes[0].restore(parked)
        end: ProcessEnd = sandboxes[0].run("schedule", threads=1)
    every = list(moments(len(end.points), seed))
    wanted = os.environ.get(COUNT) or str(SAMPLED)
    count = len(every) if wanted == "all" else int(wanted)
    chosen = random.Random(seed).sample(every, count)  # noqa: S311
    print(f"seed {seed}: {len(chosen)} of {len(every)} roll-backs over {len(end.points)} points")

    def share(number: int) -> list[str]:
        sandbox = sandboxes[number]
        return [
            f"{end.points[moment.to - 1]} <- {moment}: {'; '.join(problems)}"
            for moment in chosen[number :: len(sandboxes)]
            if (problems := roll_back(sandbox, parked, moment, dies))
        ]

    with ThreadPoolExecutor(len(sandboxes)) as threads:
        bad = [line for lines in threads.map(share, range(len(sandboxes))) for line in lines]
    assert not bad, f"{len(bad)} of {len(chosen)}, seed {seed}:\n" + "\n".join(bad)
