"""When a batch is cut."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from config.batch import Batch
from scheduler.jobs.flush_policy import PromotionDecision, flush, promote
from scheduler.model.backlog import FlushDecision, GroupBacklog

NOW = 1_750_000_000.0
POLICY = Batch(max_requests=100, max_inputs=100, max_bytes=1000, max_wait=300, margin=3600)
DAY = 86_400


def waiting(
    requests: int = 1,
    inputs: int | None = None,
    size: int = 1,
    age: float = 0,
    deadline: float | None = None,
) -> GroupBacklog:
    at = None if deadline is None else NOW + deadline
    inputs = requests if inputs is None else inputs
    return GroupBacklog(requests, inputs, size, oldest=NOW - age, deadline=at)


def test_nothing_waits_and_nothing_is_cut() -> None:
    assert flush(GroupBacklog(), POLICY, NOW) is None


def test_a_young_small_group_waits_for_more() -> None:
    assert flush(waiting(99, size=999, age=299), POLICY, NOW) is None


def test_a_batch_full_by_count_is_cut_at_once() -> None:
    assert flush(waiting(250), POLICY, NOW) == FlushDecision(100, "count")


def test_embedding_inputs_count_each() -> None:
    assert flush(waiting(3, inputs=100), POLICY, NOW) == FlushDecision(3, "count")


def test_a_batch_full_by_bytes_is_cut_at_once() -> None:
    assert flush(waiting(3, size=1000), POLICY, NOW) == FlushDecision(3, "bytes")


def test_the_oldest_request_waits_no_longer_than_it_may() -> None:
    assert flush(waiting(age=300), POLICY, NOW) == FlushDecision(1, "age")


def test_a_deadline_that_leaves_the_window_and_the_margin_cuts_at_once() -> None:
    assert flush(waiting(deadline=DAY + 3600), POLICY, NOW) == FlushDecision(1, "deadline")
    assert flush(waiting(deadline=DAY + 3601), POLICY, NOW) is None


groups = st.builds(
    waiting,
    requests=st.integers(1, 10_000),
    inputs=st.integers(1, 10_000),
    size=st.integers(1, 10_000),
    age=st.integers(0, 10_000),
    deadline=st.none() | st.integers(-DAY, 10 * DAY),
)
policies = st.builds(
    Batch,
    max_requests=st.integers(1, 50_000),
    max_inputs=st.integers(1, 50_000),
    max_bytes=st.integers(1, 200_000_000),
    max_wait=st.integers(0, DAY),
    margin=st.integers(0, DAY),
)


@given(groups, policies)
def test_a_cut_is_never_empty_and_never_over_the_limit(group: GroupBacklog, policy: Batch) -> None:
    cut = flush(group, policy, NOW)
    if cut is not None:
        assert 1 <= cut.requests <= min(group.requests, policy.max_requests)


@given(groups, policies, st.integers(0, 10 * DAY))
def test_what_is_to_be_cut_stays_so_as_time_goes_by(
    group: GroupBacklog, policy: Batch, later: float
) -> None:
    if flush(group, policy, NOW) is not None:
        assert flush(group, policy, NOW + later) is not None


@given(groups, policies)
def test_nothing_waits_longer_than_it_may(group: GroupBacklog, policy: Batch) -> None:
    assert flush(group, policy, NOW + policy.max_wait) is not None


@given(groups, policies)
def test_a_group_that_waits_is_neither_full_nor_late(group: GroupBacklog, policy: Batch) -> None:
    if flush(group, policy, NOW) is None:
        assert group.inputs < policy.max_inputs
        assert group.requests < policy.max_requests
        assert group.size_bytes < policy.max_bytes
        assert (
            group.deadline is None or group.deadline > NOW + policy.window_seconds + policy.margin
        )


def of_tokens(tokens: int, reserved: int = 0, age: float = 0) -> GroupBacklog:
    return replace(waiting(3, age=age), tokens=tokens, reserved=reserved)


def test_a_group_that_fills_the_token_budget_is_cut_at_once() -> None:
    assert flush(of_tokens(1000), POLICY, NOW, budget=1000) == FlushDecision(3, "tokens")
    assert flush(of_tokens(999), POLICY, NOW, budget=1000) is None
    assert flush(of_tokens(1_000_000), POLICY, NOW) is None, "there is no budget"


def test_nothing_is_cut_while_live_batches_hold_the_whole_budget() -> None:
    assert flush(of_tokens(1, reserved=1000, age=300), POLICY, NOW, budget=1000) is None
    assert flush(of_tokens(1, reserved=999, age=300), POLICY, NOW, budget=1000) == FlushDecision(
        3, "age"
    )


def test_a_request_near_its_deadline_is_promoted() -> None:
    near = PromotionDecision(NOW + 900, "its deadline is near")
    assert promote(waiting(deadline=900), POLICY, NOW) == near
    assert promote(waiting(deadline=901), POLICY, NOW) is None
    assert promote(waiting(), POLICY, NOW) is None


def test_few_requests_are_promoted_when_they_can_wait_for_no_more() -> None:
    policy = POLICY.model_copy(update={"min_requests": 10})
    few = PromotionDecision(NOW + DAY + 3600, "too few requests for a batch")
    assert promote(waiting(9, deadline=DAY), policy, NOW) == few
    assert promote(waiting(10, deadline=DAY), policy, NOW) is None
    assert promote(waiting(9, deadline=DAY + 3600), policy, NOW) == few
    assert promote(waiting(9, deadline=DAY + 3601), policy, NOW) is None


def test_no_request_is_promoted_where_that_is_switched_off() -> None:
    policy = POLICY.model_copy(update={"promote_before": 0.0})
    assert promote(waiting(deadline=1), policy, NOW) is None
