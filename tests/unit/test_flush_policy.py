"""When a batch is created, and when requests are promoted."""

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


def backlog(
    requests: int = 1,
    inputs: int | None = None,
    size: int = 1,
    age: float = 0,
    deadline: float | None = None,
) -> GroupBacklog:
    deadline_at = None if deadline is None else NOW + deadline
    inputs = requests if inputs is None else inputs
    return GroupBacklog(requests, inputs, size, oldest=NOW - age, deadline=deadline_at)


def test_an_empty_group_creates_no_batch() -> None:
    assert flush(GroupBacklog(), POLICY, NOW) is None


def test_a_small_recent_group_waits_for_more_requests() -> None:
    assert flush(backlog(99, size=999, age=299), POLICY, NOW) is None


def test_a_batch_full_by_count_is_created_at_once() -> None:
    assert flush(backlog(250), POLICY, NOW) == FlushDecision(100, "count")


def test_each_embedding_input_counts() -> None:
    assert flush(backlog(3, inputs=100), POLICY, NOW) == FlushDecision(3, "count")


def test_a_batch_full_by_bytes_is_created_at_once() -> None:
    assert flush(backlog(3, size=1000), POLICY, NOW) == FlushDecision(3, "bytes")


def test_a_batch_is_created_when_its_oldest_request_has_waited_max_wait() -> None:
    assert flush(backlog(age=300), POLICY, NOW) == FlushDecision(1, "age")


def test_a_deadline_that_leaves_just_window_and_margin_creates_a_batch() -> None:
    assert flush(backlog(deadline=DAY + 3600), POLICY, NOW) == FlushDecision(1, "deadline")
    assert flush(backlog(deadline=DAY + 3601), POLICY, NOW) is None


groups = st.builds(
    backlog,
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
def test_a_batch_is_never_empty_and_never_above_the_limit(
    group: GroupBacklog, policy: Batch
) -> None:
    decision = flush(group, policy, NOW)
    if decision is not None:
        assert 1 <= decision.requests <= min(group.requests, policy.max_requests)


@given(groups, policies, st.integers(0, 10 * DAY))
def test_a_batch_that_is_due_stays_due(group: GroupBacklog, policy: Batch, later: float) -> None:
    if flush(group, policy, NOW) is not None:
        assert flush(group, policy, NOW + later) is not None


@given(groups, policies)
def test_no_request_waits_longer_than_max_wait(group: GroupBacklog, policy: Batch) -> None:
    assert flush(group, policy, NOW + policy.max_wait) is not None


@given(groups, policies)
def test_a_group_without_a_batch_is_neither_full_nor_late(
    group: GroupBacklog, policy: Batch
) -> None:
    if flush(group, policy, NOW) is None:
        assert group.inputs < policy.max_inputs
        assert group.requests < policy.max_requests
        assert group.size_bytes < policy.max_bytes
        assert (
            group.deadline is None or group.deadline > NOW + policy.window_seconds + policy.margin
        )


def tokens_waiting(tokens: int, reserved: int = 0, age: float = 0) -> GroupBacklog:
    return replace(backlog(3, age=age), tokens=tokens, reserved=reserved)


def test_a_group_that_fills_the_token_budget_creates_a_batch_at_once() -> None:
    assert flush(tokens_waiting(1000), POLICY, NOW, budget=1000) == FlushDecision(3, "tokens")
    assert flush(tokens_waiting(999), POLICY, NOW, budget=1000) is None
    assert flush(tokens_waiting(1_000_000), POLICY, NOW) is None, "there is no budget"


def test_no_batch_is_created_while_live_batches_hold_the_whole_budget() -> None:
    assert flush(tokens_waiting(1, reserved=1000, age=300), POLICY, NOW, budget=1000) is None
    assert flush(
        tokens_waiting(1, reserved=999, age=300), POLICY, NOW, budget=1000
    ) == FlushDecision(3, "age")


def test_a_request_near_its_deadline_is_promoted() -> None:
    near = PromotionDecision(NOW + 900, "its deadline is near")
    assert promote(backlog(deadline=900), POLICY, NOW) == near
    assert promote(backlog(deadline=901), POLICY, NOW) is None
    assert promote(backlog(), POLICY, NOW) is None


def test_too_few_requests_are_promoted_when_their_deadline_forces_a_batch() -> None:
    policy = POLICY.model_copy(update={"min_requests": 10})
    few = PromotionDecision(NOW + DAY + 3600, "too few requests for a batch")
    assert promote(backlog(9, deadline=DAY), policy, NOW) == few
    assert promote(backlog(10, deadline=DAY), policy, NOW) is None
    assert promote(backlog(9, deadline=DAY + 3600), policy, NOW) == few
    assert promote(backlog(9, deadline=DAY + 3601), policy, NOW) is None


def test_no_request_is_promoted_when_promotion_is_disabled() -> None:
    policy = POLICY.model_copy(update={"promote_before": 0.0})
    assert promote(backlog(deadline=1), policy, NOW) is None
