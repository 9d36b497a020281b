"""Errors that fail a batch before its first line is executed."""

import json
from typing import Any

import pytest
from openai import OpenAI
from openai.types import BatchError

from tests.integration.simulator.batch_file import EMBEDDINGS, create, line, lines
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile


def errors(
    client: OpenAI, clock: VirtualClock, content: bytes | list[dict[str, Any]], **changes: Any
) -> list[BatchError]:
    """Create a batch that fails, and return its errors."""
    batch = create(client, content, **changes)
    assert (batch.status, batch.errors) == ("validating", None)
    clock.advance(1)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.failed_at == 1_000_001
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert batch.errors.data
    return batch.errors.data


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 7}, "invalid_type", "custom_id"),
        ({"custom_id": "r0"}, "duplicate_custom_id", "custom_id"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": None}, "missing_required_parameter", "url"),
        ({"url": "/v1/fun"}, "invalid_url", "url"),
        ({"url": EMBEDDINGS}, "url_mismatch", "url"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": {}}, "missing_required_parameter", "body.model"),
        ({"body": {"model": "other"}}, "model_mismatch", "body.model"),
        ({"body": {"model": "nobody"}}, "model_not_found", "body.model"),
        ({"body": {"model": "m", "stream": True}}, "invalid_request", "body.stream"),
    ],
)
def test_an_invalid_line_fails_the_batch_with_its_line_number(
    client: OpenAI, clock: VirtualClock, changes: dict[str, Any], code: str, param: str
) -> None:
    content = [line("r0"), line("r1"), {**line("r2"), **changes}, line("r3")]
    [error] = errors(client, clock, content)
    assert (error.code, error.param, error.line) == (code, param, 3)
    assert error.message


@pytest.mark.parametrize(
    "invalid",
    [b"{", b"[]", b"\xef\xbb\xbf{}", b'{"a": NaN}', b"\xff", '{"a": 1}'.encode("utf-16")],
)
def test_a_line_that_is_not_a_json_object_fails_the_batch(
    client: OpenAI, clock: VirtualClock, invalid: bytes
) -> None:
    content = json.dumps(line("r0")).encode() + b"\n" + invalid
    [error] = errors(client, clock, content)
    assert (error.code, error.line) == ("invalid_json_line", 2)
    assert error.message == "This line is not parseable as valid JSON."


def test_all_invalid_lines_are_reported(client: OpenAI, clock: VirtualClock) -> None:
    reported = errors(client, clock, [line("r0"), line("r0"), line("r1", url="/x"), line("r2")])
    assert [(error.line, error.code) for error in reported] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_url"),
    ]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_fails_the_batch(client: OpenAI, clock: VirtualClock, content: bytes) -> None:
    [error] = errors(client, clock, content)
    assert (error.code, error.line) == ("empty_file", None)


def test_too_many_requests_fail_the_batch(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    sim.profile = Profile(models=MODELS, batch=BatchProfile(max_requests=3))
    [error] = errors(client, clock, lines(4))
    assert (error.code, error.line) == ("too_many_tasks", None)


def test_the_maximum_number_of_requests_is_accepted(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    sim.profile = Profile(models=MODELS, batch=BatchProfile(max_requests=3))
    batch_id = create(client, lines(3)).id
    clock.advance(1)
    assert client.batches.retrieve(batch_id).status == "in_progress"


@pytest.mark.parametrize(
    ("inputs", "passes"), [([["a", "b"], [1, 2, 3]], True), ([["a", "b"], "c", [1, 2, 3]], False)]
)
def test_embedding_inputs_are_counted_over_all_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock, inputs: list[Any], passes: bool
) -> None:
    sim.profile = Profile(models=MODELS, batch=BatchProfile(max_embedding_inputs=3))
    content = [
        line(f"e{number}", url=EMBEDDINGS, body={"model": "e", "input": item})
        for number, item in enumerate(inputs)
    ]
    batch_id = create(client, content, endpoint=EMBEDDINGS).id
    clock.advance(1)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == ("in_progress" if passes else "failed")
    if not passes:
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert batch.errors.data[0].code == "too_many_embedding_inputs"


def test_a_failed_batch_costs_nothing(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    errors(client, clock, [*lines(3), line("r0")])
    clock.advance(100)
    assert sim.invoice()["total"] == 0
