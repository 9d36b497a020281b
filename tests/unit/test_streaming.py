"""How a reader decodes a stream, without Redis and without waiting."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from celery import Celery

from primarch_fleet import Chunk, CompletionRequest, EmbeddingRequest, errors, protocol
from primarch_fleet.answers import form_of
from primarch_fleet.streaming import (
    FAILED_READ_SECONDS,
    READ_SECONDS,
    RECONNECT_TIMEOUT_SECONDS,
    RESULT_GRACE_SECONDS,
    StreamCursor,
    streamed,
)
from tests.support.clock import Clock

BACKEND: Any = Celery(set_as_current=False, backend="cache+memory://").backend
STREAMED = {"body": {}, "receipt": {"time_to_first_token": 0.1}}
#: A reply to TIME.
NOW = (1_800_000_000, 0)
ANSWER = json.dumps({"status": "SUCCESS", "result": STREAMED})


def reading(
    after: str | None = None, timeout: float | None = None, clock: Clock | None = None
) -> StreamCursor:
    return StreamCursor(BACKEND, "task", after, timeout, clock or Clock())


def entries(*some: tuple[str, str]) -> list[Any]:
    """A reply to XREAD: "opened", "ok" and "failed" are markers, other strings are texts."""
    kinds = {"opened": {"opened": ""}, "ok": {"ended": "ok"}, "failed": {"ended": "failed"}}
    return [
        ("key", [(one, kinds.get(what, {"chunk": json.dumps(body(what))})) for one, what in some])
    ]


def body(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_a_run_is_read_in_order_to_its_end() -> None:
    reader = reading()
    first = reader.read(entries(("7-0", "opened"), ("7-1", "a")))
    assert not reader.ended
    rest = reader.read(entries(("7-2", "b"), ("7-3", "ok")))
    assert [(chunk.id, chunk.text) for chunk in first + rest] == [("7-1", "a"), ("7-2", "b")]
    assert reader.ended
    assert reader.after == "7-3"


def test_a_reader_resumes_after_a_chunk() -> None:
    reader = reading(after="7-1")
    assert reader.after == "7-1"
    [chunk] = reader.read(entries(("7-2", "b")))
    assert chunk.text == "b"


@pytest.mark.parametrize("after", ["", "7", "7-", "$", "7-1-2", "-7-1"])
def test_an_invalid_chunk_id_is_rejected(after: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"^after"):
        reading(after=after)


def test_a_reader_without_a_chunk_follows_a_run_that_starts_over() -> None:
    reader = reading()
    reader.read(entries(("7-0", "opened"), ("7-1", "failed")))
    [chunk] = reader.read(entries(("8-0", "opened"), ("8-1", "b")))
    assert chunk.text == "b"


@pytest.mark.parametrize("after", [None, "7-1"])
def test_a_reader_with_a_chunk_gets_an_error_if_the_run_starts_over(after: str | None) -> None:
    reader = reading(after)
    if after is None:
        reader.read(entries(("7-0", "opened"), ("7-1", "a")))
    with pytest.raises(errors.StreamInterrupted, match="started over"):
        reader.read(entries(("8-0", "opened")))


@pytest.mark.parametrize(
    ("after", "next_id"), [("7-1", "7-3"), ("7-1", "7-1"), (None, "7-5"), (None, "7-1")]
)
def test_a_gap_is_an_error_and_never_a_shorter_answer(after: str | None, next_id: str) -> None:
    with pytest.raises(errors.StreamInterrupted, match="Part of the stream"):
        reading(after).read(entries((next_id, "c")))


def test_after_a_failed_run_the_result_is_read_soon() -> None:
    reader = reading()
    assert reader.block_milliseconds == READ_SECONDS * 1000
    reader.read(entries(("7-0", "opened"), ("7-1", "failed")))
    assert not reader.ended
    assert reader.block_milliseconds == FAILED_READ_SECONDS * 1000
    for _ in range(20):
        reader.read_nothing(None)
    assert reader.block_milliseconds == READ_SECONDS * 1000


def test_a_failed_task_raises_its_error_for_readers() -> None:
    failure = BACKEND.prepare_exception(errors.RateLimited("slow down"), "json")
    with pytest.raises(errors.RateLimited, match="slow down"):
        reading().read_nothing(json.dumps({"status": "FAILURE", "result": failure}))


def test_a_reader_of_a_task_without_outcome_and_result_is_told_so() -> None:
    reader = reading()
    assert reader.stored_outcome([b"1.5", None, NOW]) is None  # it is open
    assert reader.stored_outcome([None, ANSWER, NOW]) == ANSWER
    assert (
        reader.stored_outcome([None, None, NOW]) is None
    )  # of a task that another client submitted
    registered = StreamCursor(BACKEND, "6f9619ff-8b86-8011-b42d-00cf4fc964ff", None, None)
    with pytest.raises(errors.ResultExpired):
        registered.stored_outcome([None, None, NOW])


def test_a_result_without_the_end_of_its_stream_is_an_error_after_a_grace_period() -> None:
    clock = Clock()
    reader = reading(clock=clock)
    reader.read_nothing(ANSWER)
    clock.now += RESULT_GRACE_SECONDS - 0.1
    reader.read_nothing(ANSWER)
    reader.read(entries(("7-0", "opened")))  # the writer was slow: its grace period starts again
    clock.now += RESULT_GRACE_SECONDS - 0.1
    reader.read_nothing(ANSWER)
    clock.now += RESULT_GRACE_SECONDS
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        reader.read_nothing(ANSWER)


@pytest.mark.parametrize("receipt", [None, {}, {"time_to_first_token": None}])
def test_an_answer_that_was_not_streamed_is_an_error_at_once(receipt: object) -> None:
    plain = json.dumps({"status": "SUCCESS", "result": {"body": {}, "receipt": receipt}})
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        reading().read_nothing(plain)


def test_the_grace_period_begins_when_the_result_was_stored() -> None:
    clock = Clock()
    reader = reading(clock=clock)
    done = datetime.fromtimestamp(NOW[0] - RESULT_GRACE_SECONDS + 1, UTC).isoformat()
    result = json.dumps({"status": "SUCCESS", "result": STREAMED, "date_done": done})
    reader.read_nothing(reader.stored_outcome([None, result, NOW]))
    clock.now += 1
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        reader.read_nothing(reader.stored_outcome([None, result, NOW]))


def test_an_error_that_is_the_value_of_its_task_is_raised_at_once() -> None:
    error = protocol.error_value(errors.RateLimited("slow down"))
    with pytest.raises(errors.RateLimited, match="slow down"):
        reading().read_nothing(json.dumps({"status": "SUCCESS", "result": error}))


def test_of_a_task_that_may_have_ended_the_result_is_read_first() -> None:
    reader = reading()
    reader.look_first()
    assert reader.block_milliseconds == 1
    reader.read_nothing(None)
    assert reader.block_milliseconds == READ_SECONDS * 1000


def test_after_a_short_timeout_an_answered_task_is_not_said_to_continue() -> None:
    clock = Clock()
    reader = reading(timeout=0.5, clock=clock)
    reader.read_nothing(ANSWER)
    clock.now += 0.5
    with pytest.raises(errors.StreamInterrupted, match=r"call result\(\)"):
        reader.read_nothing(ANSWER)


def test_the_timeout_counts_between_two_chunks_and_only_while_the_reader_waits() -> None:
    clock = Clock()
    reader = reading(timeout=5, clock=clock)
    clock.now += 60  # the consumer was busy
    reader.start()
    reader.read_nothing(None)
    clock.now += 4.9
    assert reader.block_milliseconds <= 100
    reader.read(entries(("7-0", "opened"), ("7-1", "a")))
    clock.now += 4.9
    reader.read_nothing(None)
    clock.now += 0.1
    with pytest.raises(errors.ResultTimeout, match=r"within 5 s"):
        reader.read_nothing(None)
    assert reader.block_milliseconds == 1  # 0 would be without limit


@pytest.mark.parametrize(("timeout", "limit"), [(3.0, 3.0), (None, RECONNECT_TIMEOUT_SECONDS)])
def test_a_reader_waits_for_an_unreachable_broker_until_its_limit(
    timeout: float | None, limit: float
) -> None:
    clock = Clock()
    reader = reading(timeout=timeout, clock=clock)
    assert reader.connection_lost(redis.ConnectionError()) > 0
    clock.now += limit - 0.1
    assert reader.connection_lost(redis.BusyLoadingError()) > 0
    reader.read(entries(("7-0", "opened")))
    clock.now += limit - 0.1
    assert reader.connection_lost(OSError()) > 0
    clock.now += limit
    with pytest.raises(errors.FleetUnavailable):
        reader.connection_lost(redis.TimeoutError())


def test_a_read_that_the_broker_rejects_is_not_repeated() -> None:
    with pytest.raises(errors.FleetUnavailable, match="WRONGTYPE"):
        reading().connection_lost(redis.ResponseError("WRONGTYPE"))


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ([{"index": 0, "delta": {"content": "a"}}], "a"),
        ([{"index": 1, "delta": {"content": "b"}}], ""),
        ([{"index": 0, "delta": {"content": None}}], ""),
        ([{"index": 0, "delta": {}}], ""),
        ([], ""),
    ],
)
def test_the_text_of_a_chunk_is_that_of_the_first_choice(
    choices: list[dict[str, Any]], text: str
) -> None:
    assert Chunk("7-1", {"choices": choices}).text == text


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": "a"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
        ({"reasoning_content": "hm"}, True),
        ({}, False),
    ],
)
def test_the_first_token_is_text_reasoning_or_a_tool_call(
    delta: dict[str, Any], expected: bool
) -> None:
    chunk = {"choices": [{"index": 0, "delta": delta}]}
    assert form_of(chunk).has_token(chunk) is expected


def test_streamed_sets_stream_true_and_rejects_requests_that_cannot_stream() -> None:
    hello = [{"role": "user", "content": "Hi"}]
    for stream in (None, False, True):
        request = streamed(CompletionRequest(model="m", messages=hello, stream=stream))
        assert request.streams
        assert request.to_wire()["stream"] is True
    with pytest.raises(errors.InvalidRequest, match="batch cannot stream"):
        streamed(CompletionRequest(model="m", messages=hello, lane="batch"))
    with pytest.raises(errors.InvalidRequest, match="stream"):
        streamed(EmbeddingRequest(model="m", input="x"))
