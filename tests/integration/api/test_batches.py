"""`/v1/batches` through the openai SDK: on each lane, with errors, pages, a cancel and scopes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import redis
from openai import OpenAI

from tests.support.api_batches import (
    BatchFleet,
    batch_fleet,
    ended,
    line,
    lines,
    read,
    start,
)
from tests.support.api_server import BETA, NARROW, ApiServer
from tests.support.scheduler_ticks import ticking
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.script import Script


@pytest.fixture(scope="module")
def running(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BatchFleet]:
    folder = tmp_path_factory.mktemp("batches")
    with batch_fleet(valkey_url, start_worker, folder, "realtime", "local", "batch") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server(running: BatchFleet) -> Iterator[ApiServer]:
    with running.serve() as server:
        yield server


@pytest.fixture
def client(running: BatchFleet, server: ApiServer) -> Iterator[OpenAI]:
    running.simulator.reset()
    with server.client() as client:
        yield client


def test_the_cookbooks_batch_example_runs_unchanged_but_for_the_address(
    running: BatchFleet, client: OpenAI
) -> None:
    """https://cookbook.openai.com/examples/batch_processing"""
    tasks: list[dict[str, Any]] = []
    for index, description in enumerate(["A heist in dreams.", "A shark.", "A ring."]):
        task = {
            "custom_id": f"task-{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "temperature": 0.1,
                "response_format": {"type": "json_object"},
                "messages": [
                    {"role": "system", "content": "Extract movie categories. Output json."},
                    {"role": "user", "content": description},
                ],
            },
        }
        tasks.append(task)
    file_name = running.folder / "batch_tasks_movies.jsonl"
    with file_name.open("w") as file:
        for obj in tasks:
            file.write(json.dumps(obj) + "\n")
    with file_name.open("rb") as content:
        batch_file = client.files.create(file=content, purpose="batch")
    batch_job = client.batches.create(
        input_file_id=batch_file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    with ticking(running.url):
        batch_job = ended(client, batch_job)
    assert batch_job.status == "completed"
    assert batch_job.output_file_id is not None
    result = client.files.content(batch_job.output_file_id).content
    results = [json.loads(text) for text in result.decode().splitlines()]
    assert sorted(one["custom_id"] for one in results) == ["task-0", "task-1", "task-2"]
    for one in results:
        index = int(one["custom_id"].split("-")[-1])
        content = one["response"]["body"]["choices"][0]["message"]["content"]
        assert tasks[index]["body"]["messages"][1]["content"] in content


def test_an_answer_with_unicode_line_ends_is_one_line_for_splitlines(
    running: BatchFleet, client: OpenAI
) -> None:
    text = "one\x0b\x1c\x85\u2028\u2029\xe9 line"
    running.simulator.script(Script(merge={"choices": [{"message": {"content": text}}]}))
    batch = start(client, lines([line("first")]), metadata={"x-fleet-lane": "realtime"})
    batch = ended(client, batch)
    assert batch.output_file_id is not None
    (only,) = client.files.content(batch.output_file_id).text.splitlines()
    body = json.loads(only)["response"]["body"]
    assert body["choices"][0]["message"]["content"] == text
    assert "\xe9" in only


@pytest.mark.parametrize(
    ("lane", "model"), [("realtime", "gpt-4o-mini"), ("local", "smollm2"), ("batch", "gpt-4o-mini")]
)
def test_a_batch_takes_the_lane_that_its_metadata_names(
    running: BatchFleet, client: OpenAI, lane: str, model: str
) -> None:
    content = lines(line(str(number), model=model) for number in range(5))
    batch = start(client, content, metadata={"x-fleet-lane": lane, "job": "nightly"})
    assert (batch.status, batch.object, batch.endpoint) == (
        "validating",
        "batch",
        "/v1/chat/completions",
    )
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.metadata == {"x-fleet-lane": lane, "job": "nightly"}
    with ticking(running.url):
        batch = ended(client, batch)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (5, 5, 0)
    assert batch.error_file_id is None
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    answers = read(client, batch.output_file_id)
    assert sorted(answers) == [str(number) for number in range(5)]
    for answer in answers.values():
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/embeddings", {"model": "vectors", "input": ["a", "b"]}),
        ("/v1/moderations", {"model": "guard", "input": "a"}),
        ("/v1/responses", {"model": "gpt-5-pro", "input": "hi", "max_output_tokens": 20}),
    ],
)
def test_each_endpoint_is_served(
    running: BatchFleet, client: OpenAI, url: str, body: dict[str, Any]
) -> None:
    with ticking(running.url):
        batch = ended(client, start(client, lines([line("1", url=url, **body)]), url))
    assert batch.status == "completed"
    assert read(client, batch.output_file_id)["1"]["response"]["status_code"] == 200


def test_a_line_that_fails_is_in_the_error_file_and_the_others_are_answered(
    running: BatchFleet, client: OpenAI
) -> None:
    refused = {"error": {"message": "no", "type": "invalid_request_error", "code": "bad"}}
    running.simulator.script(Script(contains="refuse me", status=400, body=refused))
    content = lines([line("1"), line("2", "refuse me"), line("3")])
    batch = ended(client, start(client, content, extra_headers={"x-fleet-lane": "realtime"}))
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert sorted(read(client, batch.output_file_id)) == ["1", "3"]
    (error,) = read(client, batch.error_file_id).values()
    assert (error["custom_id"], error["response"]) == ("2", None)
    assert error["error"]["code"] == "provider_error"
    assert error["error"]["message"]


def test_a_batch_without_an_answer_has_an_error_file_only(
    running: BatchFleet, client: OpenAI
) -> None:
    running.simulator.script(Script(status=400, body={"error": {"message": "no"}}))
    content = lines([line("1")])
    batch = ended(client, start(client, content, metadata={"x-fleet-lane": "realtime"}))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert sorted(read(client, batch.error_file_id)) == ["1"]


def test_wrong_lines_fail_the_batch_before_any_line_is_asked(
    running: BatchFleet, client: OpenAI
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    content = lines([line("1"), line("1"), line("3", url="/v1/embeddings", model="vectors")])
    content += b"no json\n\n" + lines(
        [
            {"method": "POST", "url": "/v1/chat/completions", "body": {}},
            line("7", model="gpt-9"),
            line("8", temperature="hot"),
            line("9", messages=[{"role": "user", "content": [picture]}]),
        ]
    )
    batch = ended(client, start(client, content))
    assert batch.status == "failed"
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(one.line, one.code, one.param) for one in batch.errors.data or []] == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "invalid_url", "url"),
        (4, "invalid_json_line", None),
        (6, "missing_required_parameter", "custom_id"),
        (7, "model_not_found", "body.model"),
        (8, "invalid_request", "temperature"),
        (9, "invalid_url", "body"),
    ]
    assert running.asked() == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\n", "empty_file"),
        (lines(line(str(number)) for number in range(50_001)), "too_many_tasks"),
    ],
)
def test_a_file_has_no_fewer_than_one_line_and_no_more_than_fifty_thousand(
    client: OpenAI, content: bytes, code: str
) -> None:
    batch = ended(client, start(client, content), 120)
    assert batch.errors is not None
    assert [one.code for one in batch.errors.data or []] == [code]


def test_a_cancelled_batch_keeps_its_answers_and_asks_no_more(
    running: BatchFleet, client: OpenAI
) -> None:
    running.simulator.script(Script(contains="wait", delay=120))
    content = lines([line("1"), line("2"), line("3", "wait"), line("4", "wait")])
    batch = start(client, content, metadata={"x-fleet-lane": "realtime"})

    def two_are_answered() -> bool:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed == 2

    eventually(two_are_answered)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    assert sorted(read(client, batch.output_file_id)) == ["1", "2"]
    errors = read(client, batch.error_file_id)
    assert sorted(errors) == ["3", "4"]
    assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_that_is_cancelled_at_once_asks_nothing(
    running: BatchFleet, client: OpenAI
) -> None:
    realtime = {"x-fleet-lane": "realtime"}
    batch = start(client, lines(line(str(number)) for number in range(3)), metadata=realtime)
    client.batches.cancel(batch.id)
    batch = ended(client, batch)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    errors = read(client, batch.error_file_id)
    assert [one["error"]["code"] for one in errors.values()] == ["batch_cancelled"] * 3
    assert running.asked() == []


def test_a_batch_lane_request_of_a_cancelled_batch_is_not_paid(
    running: BatchFleet, client: OpenAI
) -> None:
    batch = start(client, lines([line("1")]))  # nothing is created on the batch lane now

    def runs() -> bool:
        return client.batches.retrieve(batch.id).status == "in_progress"

    eventually(runs)
    client.batches.cancel(batch.id)
    assert ended(client, batch).status == "cancelled"
    with ticking(running.url):
        other = ended(client, start(client, lines([line("2")])))
    assert other.status == "completed"
    assert running.simulator.invoice()["requests"] == 1


def test_routing_fields_reach_each_line(running: BatchFleet, client: OpenAI) -> None:
    past = {"x-fleet-lane": "realtime", "x-fleet-deadline": "2026-01-01T00:00:00Z"}
    batch = ended(client, start(client, lines([line("1")]), metadata=past))
    assert batch.output_file_id is None
    assert read(client, batch.error_file_id)["1"]["error"]["code"] == "deadline_exceeded"
    costly = {"x-fleet-lane": "realtime", "x-fleet-max-cost-usd": "0.000000001"}
    batch = ended(client, start(client, lines([line("1")]), metadata=costly))
    assert read(client, batch.error_file_id)["1"]["error"]["code"] == "cost_cap_exceeded"
    assert running.asked() == []


def test_lists_have_pages_the_newest_first(running: BatchFleet, server: ApiServer) -> None:
    client = server.client(BETA)
    batches = [start(client, lines([line(str(number))])) for number in range(5)]
    ids = [batch.id for batch in reversed(batches)]
    files = [batch.input_file_id for batch in reversed(batches)]
    first = client.batches.list(limit=2)
    assert [one.id for one in first.data] == ids[:2]
    assert first.has_more
    body = client.batches.with_raw_response.list(limit=2).http_response.json()
    assert (body["first_id"], body["last_id"]) == (ids[0], ids[1])
    assert [one.id for one in client.batches.list(limit=2)] == ids, "the SDK reads all pages"
    last = client.batches.list(after=ids[3], limit=1)
    assert [one.id for one in last.data] == ids[4:]
    assert not last.has_more
    assert [one.id for one in client.files.list(purpose="batch", limit=2)] == files
    assert [one.id for one in client.files.list(order="asc", limit=3)] == files[::-1]
    assert client.files.list(purpose="batch_output").data == []
    for limit in (0, 101, -1):
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.batches.list(limit=limit)
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_unknown")
    for batch in batches:
        client.batches.cancel(batch.id)
        ended(client, batch)


def test_another_tenants_objects_are_as_those_that_do_not_exist(
    client: OpenAI, server: ApiServer
) -> None:
    batch = start(client, lines([line("1")]))
    other = server.client(BETA)
    owned, unknown = batch.input_file_id, "file-0123456789abcdef0123456789abcdef"
    calls: list[Callable[[str, str], Any]] = [
        lambda file, _: other.files.retrieve(file),
        lambda file, _: other.files.content(file),
        lambda file, _: other.files.delete(file),
        lambda file, _: other.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
        ),
        lambda _, identity: other.batches.retrieve(identity),
        lambda _, identity: other.batches.cancel(identity),
    ]
    for call in calls:
        answers = []
        for file, identity in ((owned, batch.id), (unknown, "batch_unknown")):
            with pytest.raises(openai.NotFoundError) as found:
                call(file, identity)
            answers.append(found.value.response.text.replace(file, "ID").replace(identity, "ID"))
        assert answers[0] == answers[1]
    assert batch.id not in [one.id for one in other.batches.list()]
    assert owned not in [one.id for one in other.files.list()]
    client.batches.cancel(batch.id)
    ended(client, batch)


def test_a_key_uses_its_lanes_and_models_only(server: ApiServer) -> None:
    narrow = server.client(NARROW)  # realtime, gpt-4o-*
    batch = ended(narrow, start(narrow, lines([line("1")])))
    assert batch.status == "completed", "on its lane"
    with pytest.raises(openai.PermissionDeniedError):
        start(narrow, lines([line("1")]), metadata={"x-fleet-lane": "batch"})
    batch = ended(narrow, start(narrow, lines([line("1", model="smollm2")])))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [one.code for one in batch.errors.data or []] == ["model_not_found"]


def test_a_repeated_create_with_its_idempotency_key_is_one_batch(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", lines([line("1")])), purpose="batch")

    def create(**more: Any) -> str:
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "nightly-1"},
            **more,
        )
        return batch.id

    identity = create()
    assert create() == identity
    with pytest.raises(openai.UnprocessableEntityError):
        create(metadata={"a": "b"})
    assert len(client.batches.list(limit=1).data) == 1
    client.batches.cancel(identity)


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "/v1/completions"},
        {"completion_window": "1h"},
        {"metadata": {"a": "b" * 513}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        {"extra_body": {"window": 1}},
    ],
)
def test_a_wrong_parameter_is_named(client: OpenAI, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        start(client, lines([line("1")]), **wrong)
    assert next(iter(wrong.get("extra_body", wrong))) in str(found.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x-fleet-priority", "now", "priority: Input should be"),
        ("x-fleet-lanes", "batch", "x-fleet-lanes: not known"),
    ],
)
def test_a_wrong_routing_value_is_refused_before_a_batch_exists(
    client: OpenAI, name: str, value: str, message: str
) -> None:
    before = len(client.batches.list(limit=100).data)
    with pytest.raises(openai.BadRequestError, match=message):
        start(client, lines([line("1")]), metadata={name: value})
    assert len(client.batches.list(limit=100).data) == before


def test_a_file_that_a_batch_reads_is_not_deleted(running: BatchFleet, client: OpenAI) -> None:
    batch = start(client, lines([line("1")]))
    with pytest.raises(openai.ConflictError, match="a batch reads the file"):
        client.files.delete(batch.input_file_id)
    client.batches.cancel(batch.id)
    ended(client, batch)
    assert client.files.delete(batch.input_file_id).deleted


def test_a_batch_that_no_process_finished_in_its_window_has_expired(
    running: BatchFleet, server: ApiServer, client: OpenAI, valkey_url: str
) -> None:
    running.simulator.script(Script(contains="wait", delay=120))
    batch = start(
        client, lines([line("1"), line("2", "wait")]), metadata={"x-fleet-lane": "realtime"}
    )
    eventually(lambda: len(running.asked()) == 2)
    with redis.Redis.from_url(valkey_url) as store:
        store.hset(f"fleet:api:batch:{batch.id}", "expires_at", 1)
    server.process.send_signal(signal.SIGSTOP)  # it does not run the batch any more
    try:
        with running.serve() as other:
            batch = ended(other.client(), batch, 90)
            assert batch.status == "expired"
            assert batch.expired_at is not None
            assert sorted(read(other.client(), batch.output_file_id)) == ["1"]
            error = read(other.client(), batch.error_file_id)["2"]["error"]
            assert error["code"] == "batch_expired"
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert client.batches.retrieve(batch.id).status == "expired"
