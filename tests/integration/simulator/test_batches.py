"""Batches over loopback: statuses, files, the list, limits; time moves only by `advance`."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch, FileObject

from tests.integration.simulator.batch_file import (
    CHAT,
    EMBEDDINGS,
    create,
    ids,
    line,
    lines,
    read,
    upload,
)
from tests.integration.simulator.conformance import conforms
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile, Fault

START = 1_000_000
STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def stamps(batch: Batch) -> dict[str, int]:
    """The timestamps that are set, in seconds since creation."""
    times = {name: getattr(batch, name) for name in STAMPS}
    return {name: at - START for name, at in times.items() if at is not None}


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    request_counts = batch.request_counts
    return request_counts.total, request_counts.completed, request_counts.failed


def configure(sim: Simulator, *faults: Fault, **batch: Any) -> None:
    """Set a profile with these faults and batch settings."""
    sim.profile = Profile(models=MODELS, faults=faults, batch=BatchProfile(**batch))


def test_every_status_is_an_openai_object(
    client: OpenAI, http: httpx.Client, clock: VirtualClock
) -> None:
    batch_id = create(client, lines(5), metadata={"a": "b"}).id
    observed = []
    for _ in range(9):
        data = http.get(f"/batches/{batch_id}").json()
        batch = conforms(Batch, data)
        # OpenAI writes every key, even if its value is null.
        assert set(data) == set(Batch.model_fields)
        observed.append((batch.status, counts(batch)))
        clock.advance(1)
    assert observed == [
        ("validating", (0, 0, 0)),
        *[("in_progress", (5, done, 0)) for done in range(5)],
        ("finalizing", (5, 5, 0)),
        ("completed", (5, 5, 0)),
        ("completed", (5, 5, 0)),
    ]
    assert stamps(batch) == {"in_progress_at": 1, "finalizing_at": 6, "completed_at": 7}
    assert (batch.created_at, batch.expires_at) == (START, START + 86_400)
    assert (batch.metadata, batch.model, batch.errors) == ({"a": "b"}, "m", None)


def test_statuses_between_two_reads_have_their_start_times(
    client: OpenAI, clock: VirtualClock
) -> None:
    batch_id = create(client, lines(5)).id
    clock.advance(1000)
    batch = client.batches.retrieve(batch_id)
    assert stamps(batch) == {"in_progress_at": 1, "finalizing_at": 6, "completed_at": 7}
    assert batch.output_file_id is not None
    assert client.files.retrieve(batch.output_file_id).created_at == START + 7


def test_results_equal_realtime_answers_in_another_order(
    client: OpenAI, clock: VirtualClock, http: httpx.Client
) -> None:
    sent = lines(5)
    batch_id = create(client, sent).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    records = read(client, batch.output_file_id)
    assert sorted(ids(records)) == [item["custom_id"] for item in sent] != ids(records)
    for record in records:
        assert set(record) == {"id", "custom_id", "response", "error"}
        assert record["error"] is None
        assert record["response"]["status_code"] == 200
        request = next(item for item in sent if item["custom_id"] == record["custom_id"])
        realtime = http.post("/chat/completions", json=request["body"]).json()
        batched = record["response"]["body"]
        assert (batched["choices"], batched["usage"]) == (realtime["choices"], realtime["usage"])
    usage = [record["response"]["body"]["usage"] for record in records]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(item["prompt_tokens"] for item in usage)
    assert batch.usage.output_tokens == sum(item["completion_tokens"] for item in usage)
    assert batch.usage.total_tokens == sum(item["total_tokens"] for item in usage)


def test_a_batch_without_failures_has_no_error_file(client: OpenAI, clock: VirtualClock) -> None:
    batch_id = create(client, lines(2)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert batch.output_file_id is not None
    assert batch.error_file_id is None


def test_a_batch_whose_every_line_failed_has_no_output_file(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, Fault(scope="line", status=500))
    batch_id = create(client, lines(2)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert (batch.status, counts(batch)) == ("completed", (2, 0, 2))
    assert batch.output_file_id is None
    assert sorted(ids(read(client, batch.error_file_id))) == ["r0", "r1"]


def test_ids_of_missing_files_are_empty_with_empty_ids(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, empty_ids=True)
    batch_id = create(client, lines(1)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert batch.error_file_id == ""
    assert batch.output_file_id
    configure(sim, Fault(scope="line", status=500), empty_ids=True)
    batch_id = create(client, lines(1)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert batch.output_file_id == ""
    assert batch.error_file_id


def test_each_line_is_in_exactly_one_of_the_two_files(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, Fault(scope="line", contains="question 1", status=429, code="slow_down"))
    refused = line("wrong", body={"model": "m"})
    batch_id = create(client, [*lines(3), refused]).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert counts(batch) == (4, 2, 2)
    assert sorted(ids(read(client, batch.output_file_id))) == ["r0", "r2"]
    errors = {item["custom_id"]: item for item in read(client, batch.error_file_id)}
    assert set(errors) == {"r1", "wrong"}
    assert errors["r1"]["response"]["status_code"] == 429
    assert errors["r1"]["response"]["body"]["error"]["code"] == "slow_down"
    assert errors["wrong"]["response"]["status_code"] == 400
    assert errors["wrong"]["response"]["body"]["error"]["param"] == "messages"
    assert errors["wrong"]["error"] is None


def test_result_files_are_openai_objects(
    client: OpenAI, http: httpx.Client, clock: VirtualClock
) -> None:
    policy = {"anchor": "created_at", "seconds": 3600}
    batch_id = create(client, lines(1), output_expires_after=policy).id
    clock.advance(10)
    file_id = client.batches.retrieve(batch_id).output_file_id
    file = conforms(FileObject, http.get(f"/files/{file_id}").json())
    assert file.purpose == "batch_output"
    assert file.filename.endswith(".jsonl")
    assert file.bytes == len(client.files.content(file.id).content)
    assert file.expires_at == START + 7 + 3600


def test_embeddings_can_be_batched(client: OpenAI, clock: VirtualClock) -> None:
    sent = [
        line(f"e{index}", url=EMBEDDINGS, body={"model": "e", "input": ["a", "b"]})
        for index in range(2)
    ]
    batch_id = create(client, sent, endpoint=EMBEDDINGS).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    records = read(client, batch.output_file_id)
    assert sorted(ids(records)) == ["e0", "e1"]
    assert len(records[0]["response"]["body"]["data"]) == 2
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (4, 0)


def test_an_expired_batch_has_the_results_of_finished_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, expire_at_fraction=0.6)
    batch_id = create(client, lines(5)).id
    clock.advance(86_399)
    assert client.batches.retrieve(batch_id).status == "in_progress"
    clock.advance(1)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "expired"
    assert stamps(batch) == {"in_progress_at": 1, "expired_at": 86_400}
    assert counts(batch) == (5, 3, 0)
    output, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
    assert (len(output), len(errors)) == (3, 2)
    assert sorted(ids([*output, *errors])) == ["r0", "r1", "r2", "r3", "r4"]
    assert {item["error"]["code"] for item in errors} == {"batch_expired"}
    assert all(item["response"] is None for item in errors)
    assert sim.invoice()["requests"] == 3


def test_a_share_of_the_lines_is_not_lost_by_rounding(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, expire_at_fraction=0.29)
    batch_id = create(client, lines(100)).id
    clock.advance(86_400)
    assert counts(client.batches.retrieve(batch_id)) == (100, 29, 0)


def test_a_batch_too_slow_for_its_window_expires(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, validating=0, in_progress=20, completion_window=10)
    batch_id = create(client, lines(4)).id
    clock.advance(100)
    batch = client.batches.retrieve(batch_id)
    assert (batch.status, batch.expired_at) == ("expired", START + 10)
    assert counts(batch) == (4, 2, 0)


def test_a_cancelled_batch_has_the_results_of_finished_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    batch_id = create(client, lines(5)).id
    clock.advance(3)
    assert client.batches.cancel(batch_id).status == "cancelling"
    assert client.batches.cancel(batch_id).status == "cancelling"
    clock.advance(50)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "cancelled"
    assert stamps(batch) == {"in_progress_at": 1, "cancelling_at": 3, "cancelled_at": 4}
    assert counts(batch) == (5, 2, 0)
    output, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
    assert (len(output), len(errors)) == (2, 3)
    assert {item["error"]["code"] for item in errors} == {"batch_cancelled"}
    assert sim.invoice()["requests"] == 2


def test_cancelling_replaces_the_scheduled_change_of_status(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, cancelling=100)
    batch_id = create(client, lines(5)).id
    clock.advance(3)
    client.batches.cancel(batch_id)
    clock.advance(99)
    assert client.batches.retrieve(batch_id).status == "cancelling"
    clock.advance(1)
    assert client.batches.retrieve(batch_id).status == "cancelled"


def test_a_batch_cancelled_while_validating_executes_nothing(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    batch_id = create(client, lines(2)).id
    client.batches.cancel(batch_id)
    clock.advance(1)
    batch = client.batches.retrieve(batch_id)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    assert sorted(ids(read(client, batch.error_file_id))) == ["r0", "r1"]
    assert sim.invoice()["requests"] == 0


@pytest.mark.parametrize(("after", "status"), [(6, "finalizing"), (7, "completed")])
def test_a_batch_that_has_finished_its_work_cannot_be_cancelled(
    client: OpenAI, clock: VirtualClock, after: float, status: str
) -> None:
    batch_id = create(client, lines(1)).id
    clock.advance(after)
    with pytest.raises(openai.ConflictError, match=status):
        client.batches.cancel(batch_id)
    assert client.batches.retrieve(batch_id).status == status


def test_the_list_is_newest_first_and_pages(client: OpenAI, http: httpx.Client) -> None:
    created = [create(client, lines(1)).id for _ in range(5)]
    page = http.get("/batches", params={"limit": 2}).json()
    assert [conforms(Batch, item).id for item in page["data"]] == [created[4], created[3]]
    assert (page["first_id"], page["last_id"]) == (created[4], created[3])
    assert page["has_more"] is True
    last = http.get("/batches", params={"limit": 2, "after": created[2]}).json()
    assert [item["id"] for item in last["data"]] == [created[1], created[0]]
    assert last["has_more"] is False
    assert [batch.id for batch in client.batches.list(limit=2)] == created[::-1]


def test_a_list_has_twenty_batches_by_default(client: OpenAI) -> None:
    file_id = upload(client, lines(1))
    for _ in range(21):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert len(client.batches.list().data) == 20


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"after": "x"}]
)
def test_an_invalid_page_is_refused(http: httpx.Client, query: dict[str, str]) -> None:
    response = http.get("/batches", params=query)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(query))


def test_a_new_batch_is_retrievable_before_list_lag_ends(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(sim, list_lag=30)
    batch_id = create(client, lines(1)).id
    clock.advance(29)
    assert client.batches.list().data == []
    assert client.batches.retrieve(batch_id).id == batch_id
    clock.advance(1)
    assert [batch.id for batch in client.batches.list()] == [batch_id]


def test_the_list_shows_progress(client: OpenAI, clock: VirtualClock) -> None:
    create(client, lines(5))
    clock.advance(3)
    assert [counts(batch) for batch in client.batches.list()] == [(5, 2, 0)]


def test_an_unknown_batch_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="batch_x"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError, match="batch_x"):
        client.batches.cancel("batch_x")


def test_reading_a_batch_often_executes_each_line_once(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    batch_id = create(client, lines(3)).id
    for _ in range(20):
        clock.advance(0.5)
        client.batches.retrieve(batch_id)
        list(client.batches.list())
    assert sim.invoice()["requests"] == 3
    batch = client.batches.retrieve(batch_id)
    assert len(read(client, batch.output_file_id)) == 3


def test_a_text_with_other_line_separators_is_one_line(client: OpenAI, clock: VirtualClock) -> None:
    item = line("r0", "one\u2028two\x85three")
    content = json.dumps(item, ensure_ascii=False).encode()
    batch_id = create(client, content).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert ids(read(client, batch.output_file_id)) == ["r0"]
