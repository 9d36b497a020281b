"""The effects of fault rules on calls with the SDK."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.integration.simulator.batch_file import CHAT, create, ids, lines, read, upload
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import BatchProfile, Fault
from workers.onebox.simulator.rule import Rules, Subject


def configure(sim: Simulator, *faults: Fault, **changes: Any) -> None:
    sim.profile = Profile(models=MODELS, faults=faults, **changes)


def ask(client: OpenAI, text: str = "why?", model: str = "m") -> str | None:
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}]
    )
    return completion.choices[0].message.content


def outcomes(client: OpenAI, number: int) -> list[str]:
    """For each of `number` equal calls, "." for success or "x" for an error."""
    results = []
    for _ in range(number):
        try:
            ask(client)
        except openai.APIStatusError:
            results.append("x")
        else:
            results.append(".")
    return results


def test_a_429_has_a_retry_after_header(client: OpenAI, sim: Simulator) -> None:
    configure(sim, Fault(status=429, retry_after=7, message="Slow down."))
    with pytest.raises(openai.RateLimitError, match=r"Slow down\.") as raised:
        ask(client)
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.type == "requests"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "context_length_exceeded", "invalid_request_error"),
        (401, "invalid_api_key", "invalid_request_error"),
        (429, "insufficient_quota", "insufficient_quota"),
        (500, None, "server_error"),
        (503, "overloaded", "server_error"),
    ],
)
def test_an_error_has_openais_form(
    http: httpx.Client, sim: Simulator, status: int, code: str | None, kind: str
) -> None:
    configure(sim, Fault(status=status, code=code))
    response = http.get("/models")
    assert response.status_code == status
    assert response.headers["x-request-id"].startswith("req_")
    assert response.json() == {
        "error": {"message": "Simulated fault.", "type": kind, "param": None, "code": code}
    }


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "xxxxxx"),
        ({"first": 2}, "xx...."),
        ({"every": 3}, "..x..x"),
        ({"every": 2, "times": 2}, ".x.x.."),
        ({"first": 3, "every": 2}, ".x...."),
        ({"probability": 0}, "......"),
        ({"probability": 1}, "xxxxxx"),
    ],
)
def test_a_rule_hits_as_often_as_its_fields_say(
    client: OpenAI, sim: Simulator, rule: dict[str, Any], expected: str
) -> None:
    configure(sim, Fault(status=500, **rule))
    assert "".join(outcomes(client, 6)) == expected


def hits(seed: int, bodies: list[bytes]) -> dict[bytes, int]:
    faults = Rules([Fault(status=500, probability=0.3)], seed)
    hit_counts = dict.fromkeys(bodies, 0)
    for body in bodies:
        hit_counts[body] += faults.pick(Subject("call", "embeddings", None, body, dict)) is not None
    return hit_counts


def test_probability_depends_on_the_seed_and_not_on_the_order() -> None:
    bodies = [b"%d" % (number % 500) for number in range(1000)]
    assert hits(1, bodies) == hits(1, bodies[::-1])
    assert hits(1, bodies) != hits(2, bodies)
    assert 250 < sum(hits(1, bodies).values()) < 350


def test_each_retry_gets_a_new_random_number() -> None:
    assert 200 < hits(1, [b"same"] * 1000)[b"same"] < 400


def test_the_first_rule_that_hits_decides(client: OpenAI, sim: Simulator) -> None:
    configure(
        sim,
        Fault(status=401, model="other"),
        Fault(status=403, contains="secret", first=1),
        Fault(status=409, endpoint="embeddings"),
        Fault(status=422, endpoint="chat.completions", contains="secret"),
    )
    with pytest.raises(openai.AuthenticationError):
        ask(client, model="other")
    with pytest.raises(openai.PermissionDeniedError):
        ask(client, "a secret")
    with pytest.raises(openai.ConflictError):
        client.embeddings.create(model="e", input="a")
    with pytest.raises(openai.UnprocessableEntityError):
        ask(client, "a secret")
    assert ask(client) == "Simulated answer to: why?"


def test_a_rule_can_match_one_batch_by_its_path(client: OpenAI, sim: Simulator) -> None:
    first, second = create(client, lines(1)).id, create(client, lines(1)).id
    configure(sim, Fault(endpoint="batches.retrieve", contains=first, status=404))
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(first)
    assert client.batches.retrieve(second).id == second


def test_a_rule_can_match_the_content_of_an_upload(client: OpenAI, sim: Simulator) -> None:
    configure(sim, Fault(endpoint="files.create", contains="question 1", status=500))
    assert upload(client, lines(1))
    with pytest.raises(openai.InternalServerError):
        upload(client, lines(2))


def test_a_call_dropped_before_the_response_has_no_effect(client: OpenAI, sim: Simulator) -> None:
    configure(sim, Fault(drop="before_response", first=1))
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    assert sim.invoice()["requests"] == 0
    assert sim.stats()["calls"] == {"chat.completions": {"dropped": 1}}
    assert ask(client) == "Simulated answer to: why?"


def test_a_call_dropped_after_the_commit_has_taken_effect(client: OpenAI, sim: Simulator) -> None:
    configure(sim, Fault(endpoint="batches.create", drop="after_commit", first=1))
    file_id = upload(client, lines(1))
    with pytest.raises(openai.APIConnectionError):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert [batch.input_file_id for batch in client.batches.list()] == [file_id]
    assert sim.stats()["batches_created"] == 1


def test_a_create_retried_after_a_lost_response_creates_a_second_batch(
    client: OpenAI, sim: Simulator
) -> None:
    configure(sim, Fault(endpoint="batches.create", drop="after_commit", first=1))
    file_id = upload(client, lines(1))
    with pytest.raises(openai.APIConnectionError):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert [batch.input_file_id for batch in client.batches.list()] == [file_id] * 2


def test_a_status_after_the_commit_hides_that_the_call_took_effect(
    client: OpenAI, sim: Simulator
) -> None:
    configure(sim, Fault(endpoint="batches.create", status=500, drop="after_commit"))
    with pytest.raises(openai.InternalServerError):
        create(client, lines(1))
    assert len(client.batches.list().data) == 1


def test_a_stream_can_break_off_in_the_middle(client: OpenAI, sim: Simulator) -> None:
    configure(sim, Fault(drop="mid_stream"))
    chunks = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "why?"}], stream=True
    )
    texts = []
    with pytest.raises(httpx.RemoteProtocolError):
        for chunk in chunks:
            texts.append(chunk.choices[0].delta.content)
    assert "".join(text or "" for text in texts)
    assert "".join(text or "" for text in texts) != "Simulated answer to: why?"


def test_a_download_can_break_off_in_the_middle(client: OpenAI, sim: Simulator) -> None:
    file_id = upload(client, lines(3))
    configure(sim, Fault(endpoint="files.content", drop="mid_stream", first=1))
    with pytest.raises(openai.APIConnectionError):
        client.files.content(file_id)
    assert client.files.content(file_id).text.count("\n") == 3


def test_a_rule_with_only_a_delay_answers_late(
    client: OpenAI, sim: Simulator, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(clock, "sleep", sleep)
    configure(sim, Fault(delay=30, first=1))
    assert ask(client) == "Simulated answer to: why?"
    assert 30 in slept


def run_batch(
    client: OpenAI, sim: Simulator, clock: VirtualClock, fault: Fault
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    configure(sim, fault)
    batch_id = create(client, lines(3)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "completed"
    return read(client, batch.output_file_id), read(client, batch.error_file_id)


def test_a_line_can_have_an_empty_response(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    fault = Fault(scope="line", contains='"r1"', status=0)
    output, [error] = run_batch(client, sim, clock, fault)
    assert sorted(ids(output)) == ["r0", "r2"]
    assert error["response"] == {"status_code": 0, "request_id": "", "body": {}}
    assert error["error"] is None


def test_a_line_can_fail_without_a_response(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    fault = Fault(scope="line", contains='"r1"', code="request_timeout", message="Too slow.")
    _, [error] = run_batch(client, sim, clock, fault)
    assert (error["custom_id"], error["response"]) == ("r1", None)
    assert error["error"] == {"code": "request_timeout", "message": "Too slow."}


def test_a_result_line_can_be_missing(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    fault = Fault(scope="line", contains='"r1"', write="missing")
    output, errors = run_batch(client, sim, clock, fault)
    assert (sorted(ids(output)), errors) == (["r0", "r2"], [])
    assert sim.invoice()["requests"] == 3


def test_a_result_line_can_be_duplicated(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    fault = Fault(scope="line", contains='"r1"', write="duplicate")
    output, _ = run_batch(client, sim, clock, fault)
    assert sorted(ids(output)) == ["r0", "r1", "r1", "r2"]


def test_a_result_line_can_have_an_unknown_custom_id(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    fault = Fault(scope="line", contains='"r1"', write="unknown")
    output, _ = run_batch(client, sim, clock, fault)
    assert sorted(ids(output))[:3] == ["r0", "r1", "r2"]
    assert sorted(ids(output))[3].startswith("unknown-")


def test_a_result_line_can_be_corrupt(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    with pytest.raises(json.JSONDecodeError):
        run_batch(client, sim, clock, Fault(scope="line", contains='"r1"', write="corrupt"))


def test_line_rules_do_not_apply_to_calls_nor_call_rules_to_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    configure(
        sim,
        Fault(scope="line", endpoint="chat.completions", contains="question 1", status=500),
        Fault(scope="call", endpoint="chat.completions", status=503),
        batch=BatchProfile(validating=0, in_progress=0, finalizing=0),
    )
    batch = client.batches.retrieve(create(client, lines(2)).id)
    assert ids(read(client, batch.output_file_id)) == ["r0"]
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, "question 1")
    assert raised.value.status_code == 503
