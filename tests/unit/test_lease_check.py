"""What a worker that stood still may start and end."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from workers.runtime.pool import lease_check
from workers.runtime.results import stored_outcome

REQUEST: Any = SimpleNamespace(
    id="id",
    acknowledged=False,
    message=SimpleNamespace(delivery_tag="tag"),
    task=SimpleNamespace(backend=None),
)


class FakeLeases:
    """Does not know the lease, and answers as it is told; an exception is raised."""

    def __init__(self) -> None:
        self.is_known = False
        #: The stored outcome of the task.
        self.outcome: object = None
        self.answers: Iterator[tuple[bool, bool] | Exception] = iter(())

    def is_certain(self, tag: str) -> bool:
        return self.is_known

    def ask(self, tag: str, task_id: str) -> tuple[bool, bool]:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> FakeLeases:
    leases = FakeLeases()
    monkeypatch.setattr(lease_check, "LEASES", leases)
    monkeypatch.setattr(lease_check, "RETRY_SECONDS", 0)
    monkeypatch.setattr(stored_outcome, "of_task", lambda backend, task_id: leases.outcome)
    return leases


def both(leases: FakeLeases, *answers: tuple[bool, bool] | Exception) -> tuple[bool, bool]:
    """Whether the task must not start, and must not end, if Redis gives these answers."""
    verdicts = []
    for must_not in (lease_check.must_not_start, lease_check.must_not_end):
        leases.answers = iter(answers)
        verdicts.append(must_not(REQUEST, lambda: False))
    return verdicts[0], verdicts[1]


@pytest.mark.parametrize(
    ("held", "cancelled", "expected"),
    [
        (True, False, (False, False)),
        (True, True, (False, False)),  # the revoke comes, and decides
        (False, False, (True, False)),  # the answer is paid for, and the first one counts
        (False, True, (True, True)),
    ],
)
def test_a_task_whose_lease_is_lost_does_not_start_and_a_cancelled_one_does_not_end(
    leases: FakeLeases, held: bool, cancelled: bool, expected: tuple[bool, bool]
) -> None:
    assert both(leases, (held, cancelled)) == expected
    assert both(leases, redis.ConnectionError(), (held, cancelled)) == expected


def test_an_answer_is_dropped_when_the_lease_is_lost_and_another_run_has_ended_the_task(
    leases: FakeLeases,
) -> None:
    leases.outcome = object()
    assert both(leases, (False, False)) == (True, True)
    assert both(leases, (True, False)) == (False, False)


def test_redis_is_not_asked_about_a_lease_that_is_certain(leases: FakeLeases) -> None:
    leases.is_known = True
    assert both(leases) == (False, False)


def test_a_worker_that_stops_need_not_wait_for_redis(leases: FakeLeases) -> None:
    leases.answers = iter([redis.ConnectionError()])
    assert lease_check.must_not_start(REQUEST, lambda: True)


def test_a_job_that_is_no_task_and_an_acknowledged_task_are_not_asked_about(
    leases: FakeLeases,
) -> None:
    acknowledged: Any = SimpleNamespace(acknowledged=True)
    for request in (None, acknowledged):
        assert not lease_check.must_not_start(request, lambda: False)
        assert not lease_check.must_not_end(request, lambda: False)
