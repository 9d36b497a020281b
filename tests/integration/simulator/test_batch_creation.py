"""The checks of a new batch, and the limit of enqueued tokens."""

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.integration.simulator.batch_file import CHAT, create, line, lines, upload
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile, Model


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter"),
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"endpoint": "/v1/fun"}, "endpoint", "invalid_value"),
        ({"completion_window": None}, "completion_window", "missing_required_parameter"),
        ({"completion_window": "1h"}, "completion_window", "invalid_value"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        (
            {"metadata": {str(n): "v" for n in range(17)}},
            "metadata",
            "object_above_max_properties",
        ),
        ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}", "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"output_expires_after": {"anchor": "x"}}, "output_expires_after.anchor", None),
    ],
)
def test_an_invalid_batch_request_is_refused(
    client: OpenAI, http: httpx.Client, changes: dict[str, Any], param: str, code: str | None
) -> None:
    request = {
        "input_file_id": upload(client, lines(1)),
        "endpoint": CHAT,
        "completion_window": "24h",
        **changes,
    }
    response = http.post("/batches", json=request)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert client.batches.list().data == []


def test_metadata_of_the_maximum_size_is_accepted(client: OpenAI) -> None:
    metadata = {f"{number:064}": "v" * 512 for number in range(16)}
    assert create(client, lines(1), metadata=metadata).metadata == metadata


def test_an_input_file_must_exist_with_purpose_batch(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Cannot find file file-x"):
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    other = client.files.create(file=("a.jsonl", b"{}"), purpose="user_data").id
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=other, endpoint=CHAT, completion_window="24h")


def test_an_input_file_over_the_size_limit_is_refused(client: OpenAI, sim: Simulator) -> None:
    sim.profile = Profile(batch=BatchProfile(max_bytes=10))
    with pytest.raises(openai.APIStatusError) as raised:
        create(client, lines(1))
    assert raised.value.status_code == 413


def set_token_limit(sim: Simulator) -> None:
    """Set a limit of 30 tokens: three requests "question" of 3 + 4 + 2 tokens fit."""
    sim.profile = Profile(models={"m": Model(enqueued_token_limit=30)})


def test_a_batch_over_the_enqueued_token_limit_fails_after_creation(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    set_token_limit(sim)
    batch = create(client, [line(f"r{n}", "question") for n in range(4)])
    assert batch.status == "validating"
    clock.advance(1)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.failed_at) == ("failed", 1_000_001)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.errors is not None
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert (error.code, error.line, error.param) == ("token_limit_exceeded", None, None)
    assert error.message is not None
    assert error.message.startswith("Enqueued token limit reached for m in organization ")
    assert "Limit: 30 enqueued tokens." in error.message


def test_enqueued_tokens_are_released_when_a_batch_ends(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    set_token_limit(sim)
    sent = [line(f"r{n}", "question") for n in range(2)]
    first, second = create(client, sent), create(client, sent)
    clock.advance(1)
    assert client.batches.retrieve(first.id).status == "in_progress"
    assert client.batches.retrieve(second.id).status == "failed"
    clock.advance(5)
    third = create(client, sent)
    clock.advance(1)
    assert client.batches.retrieve(first.id).status == "completed"
    assert client.batches.retrieve(third.id).status == "in_progress"


@pytest.mark.parametrize(("wait", "status"), [(5.5, "failed"), (6.5, "in_progress")])
def test_tokens_are_counted_at_the_due_time_not_at_the_read(
    client: OpenAI, sim: Simulator, clock: VirtualClock, wait: float, status: str
) -> None:
    set_token_limit(sim)
    sent = [line(f"r{n}", "question") for n in range(2)]
    create(client, sent)  # its tokens stay enqueued until second 7
    clock.advance(wait)
    second = create(client, sent)
    clock.advance(1.2)
    assert client.batches.retrieve(second.id).status == status
