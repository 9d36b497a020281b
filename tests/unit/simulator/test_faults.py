"""Fault rules, seen through the SDK."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.unit.simulator.batch_file import CHAT, create, ids, lines, read, upload
from tests.unit.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.faults import Faults
from workers.onebox.simulator.profile import BatchProfile, Fault


def give(sim: Simulator, *faults: Fault, **changes: Any) -> None:
    sim.profile = Profile(models=MODELS, faults=faults, **changes)


def ask(client: OpenAI, text: str = "why?", model: str = "m") -> str | None:
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}]
    )
    return completion.choices[0].message.content


def outcomes(client: OpenAI, number: int) -> list[str]:
    """For each of `number` equal calls "." or "x"."""
    seen = []
    for _ in range(number):
        try:
            ask(client)
        except openai.APIStatusError:
            seen.append("x")
        else:
            seen.append(".")
    return seen


def test_a_429_says_when_to_come_back(client: OpenAI, sim: Simulator) -> None:
    give(sim, Fault(status=429, retry_after=7, message="Slow down."))
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
def test_a_refusal_has_openais_shape(
    http: httpx.Client, sim: Simulator, status: int, code: str | None, kind: str
) -> None:
    give(sim, Fault(status=status, code=code))
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
def test_a_rule_strikes_as_often_as_it_says(
    client: OpenAI, sim: Simulator, rule: dict[str, Any], expected: str
) -> None:
    give(sim, Fault(status=500, **rule))
    assert "".join(outcomes(client, 6)) == expected


def strikes(seed: int, bodies: list[bytes]) -> dict[bytes, int]:
    faults = Faults([Fault(status=500, probability=0.3)], seed)
    struck = dict.fromkeys(bodies, 0)
    for body in bodies:
        struck[body] += faults.pick("call", "embeddings", None, body) is not None
    return struck


def test_chance_depends_on_the_seed_and_not_on_the_order() -> None:
    bodies = [b"%d" % (number % 500) for number in range(1000)]
    assert strikes(1, bodies) == strikes(1, bodies[::-1])
    assert strikes(1, bodies) != strikes(2, bodies)
    assert 250 < sum(strikes(1, bodies).values()) < 350


def test_a_retry_is_a_new_throw() -> None:
    assert 200 < strikes(1, [b"same"] * 1000)[b"same"] < 400


def test_the_first_rule_that_strikes_decides(client: OpenAI, sim: Simulator) -> None:
    give(
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


def test_a_rule_can_single_out_one_batch_by_its_path(client: OpenAI, sim: Simulator) -> None:
    first, second = create(client, lines(1)).id, create(client, lines(1)).id
    give(sim, Fault(endpoint="batches.retrieve", contains=first, status=404))
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(first)
    assert client.batches.retrieve(second).id == second


def test_a_rule_looks_into_an_uploaded_file(client: OpenAI, sim: Simulator) -> None:
    give(sim, Fault(endpoint="files.create", contains="question 1", status=500))
    assert upload(client, lines(1))
    with pytest.raises(openai.InternalServerError):
        upload(client, lines(2))


def test_a_connection_dropped_before_the_response_did_nothing(
    client: OpenAI, sim: Simulator
) -> None:
    give(sim, Fault(drop="before_response", first=1))
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    assert sim.invoice()["requests"] == 0
    assert sim.stats()["calls"] == {"chat.completions": {"dropped": 1}}
    assert ask(client) == "Simulated answer to: why?"


def test_a_connection_dropped_after_the_commit_did_everything(
    client: OpenAI, sim: Simulator
) -> None:
    give(sim, Fault(endpoint="batches.create", drop="after_commit", first=1))
    file_id = upload(client, lines(1))
    with pytest.raises(openai.APIConnectionError):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert [batch.input_file_id for batch in client.batches.list()] == [file_id]
    assert sim.stats()["batches_created"] == 1


def test_a_create_repeated_after_a_lost_answer_makes_a_second_batch(
    client: OpenAI, sim: Simulator
) -> None:
    give(sim, Fault(endpoint="batches.create", drop="after_commit", first=1))
    file_id = upload(client, lines(1))
    with pytest.raises(openai.APIConnectionError):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert [batch.input_file_id for batch in client.batches.list()] == [file_id] * 2


def test_a_status_after_the_commit_hides_what_was_done(client: OpenAI, sim: Simulator) -> None:
    give(sim, Fault(endpoint="batches.create", status=500, drop="after_commit"))
    with pytest.raises(openai.InternalServerError):
        create(client, lines(1))
    assert len(client.batches.list().data) == 1


def test_a_stream_can_break_off_in_the_middle(client: OpenAI, sim: Simulator) -> None:
    give(sim, Fault(drop="mid_stream"))
    chunks = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "why?"}], stream=True
    )
    seen = []
    with pytest.raises(httpx.RemoteProtocolError):
        for chunk in chunks:
            seen.append(chunk.choices[0].delta.content)
    assert "".join(text or "" for text in seen)
    assert "".join(text or "" for text in seen) != "Simulated answer to: why?"


def test_a_download_can_break_off_in_the_middle(client: OpenAI, sim: Simulator) -> None:
    file_id = upload(client, lines(3))
    give(sim, Fault(endpoint="files.content", drop="mid_stream", first=1))
    with pytest.raises(openai.APIConnectionError):
        client.files.content(file_id)
    assert client.files.content(file_id).text.count("\n") == 3


def test_a_delay_alone_answers_late_but_answers(
    client: OpenAI, sim: Simulator, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(clock, "sleep", sleep)
    give(sim, Fault(delay=30, first=1))
    assert ask(client) == "Simulated answer to: why?"
    assert 30 in slept


def run_batch(
    client: OpenAI, sim: Simulator, clock: VirtualClock, fault: Fault
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    give(sim, fault)
    batch_id = create(client, lines(3)).id
    clock.advance(10)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "completed"
    return read(client, batch.output_file_id), read(client, batch.error_file_id)


def test_a_line_can_come_back_with_nothing(
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


def test_a_line_can_get_lost(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    fault = Fault(scope="line", contains='"r1"', write="missing")
    output, errors = run_batch(client, sim, clock, fault)
    assert (sorted(ids(output)), errors) == (["r0", "r2"], [])
    assert sim.invoice()["requests"] == 3


def test_a_line_can_come_twice(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    fault = Fault(scope="line", contains='"r1"', write="duplicate")
    output, _ = run_batch(client, sim, clock, fault)
    assert sorted(ids(output)) == ["r0", "r1", "r1", "r2"]


def test_a_line_nobody_sent_can_come(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    fault = Fault(scope="line", contains='"r1"', write="unknown")
    output, _ = run_batch(client, sim, clock, fault)
    assert sorted(ids(output))[:3] == ["r0", "r1", "r2"]
    assert sorted(ids(output))[3].startswith("unknown-")


def test_a_line_can_be_cut_short(client: OpenAI, sim: Simulator, clock: VirtualClock) -> None:
    with pytest.raises(json.JSONDecodeError):
        run_batch(client, sim, clock, Fault(scope="line", contains='"r1"', write="corrupt"))


def test_line_rules_leave_calls_alone_and_call_rules_lines(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    give(
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
