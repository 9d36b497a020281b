"""The batch lane at Anthropic: the real SDK, LiteLLM's translation and a simulated API."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.admin.operations import Operations
from scheduler.model import jsonl
from scheduler.model.jsonl import TranslatedRequest
from tests.support.batch_accounts import dialect
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]

pytestmark = pytest.mark.anyio

ANTHROPIC = dialect("anthropic")
PIXEL = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CITY = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
NEVER_CREATED = Fault(endpoint="batches.create", drop="before_response", times=1)
NEVER_ANSWERED = Fault(endpoint="batches.create", drop="after_commit", times=1)


@pytest.fixture(name="anthropic")
def at_anthropic(opened: OpenBench) -> OpenBench:
    return partial(opened, dialect=ANTHROPIC)


def orders(b: Bench) -> list[list[dict[str, Any]]]:
    """The requests of each create call."""
    app: Any = b.simulator._app
    return [body["requests"] for body in app.created_bodies]


async def create_foreign_batch(b: Bench, folder: Path, *custom_ids: str) -> str:
    """Create a batch outside of the fleet, in the same account; its id."""
    path = folder / "foreign.jsonl"
    messages = [{"role": "user", "content": "theirs"}]
    body = {"model": "gpt-4o", "messages": messages, "max_tokens": 9}
    request, provider = TranslatedRequest("/v1/messages", body), b.scheduler.provider
    path.write_bytes(b"".join(jsonl.encode(provider.line(c, request)) for c in custom_ids))
    file_id = await provider.upload(path, path.name)
    return (await provider.create(file_id, "/v1/chat/completions", "24h", "theirs")).id


def paid(b: Bench) -> int:
    return int(b.simulator.invoice()["by_kind_nanousd"]["batch"])


async def test_requests_of_every_kind_get_responses_in_openais_format(
    anthropic: OpenBench,
) -> None:
    picture = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    requests = [
        chat("a long question that is answered shortly", max_tokens=3, temperature=0.5, n=1),
        chat("weather?", tools=[WEATHER], tool_choice="required"),
        chat("a city", response_format={"type": "json_schema", "json_schema": CITY}),
    ]
    system = {"role": "system", "content": "Be brief."}
    image = {"role": "user", "content": picture}
    requests += [chat("").model_copy(update={"messages": [system, image]})]
    async with anthropic() as b:
        results = await b.send(*requests)
        await b.until_idle()
        short, tool, schema, seen = await b.settled(results, batches=1)
        assert short.body["choices"][0]["finish_reason"] == "length"
        (call,) = tool.body["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        assert "city" in json.loads(call["function"]["arguments"])
        assert "city" in json.loads(schema.text)
        assert "tool_calls" not in schema.body["choices"][0]["message"]
        assert "what is it?" in seen.text
        (sent,) = [request for request in orders(b)[0] if "Be brief." in json.dumps(request)]
        assert sent["params"]["system"] == [{"type": "text", "text": "Be brief."}]
        sources = [part["source"]["type"] for part in sent["params"]["messages"][0]["content"][1:]]
        assert sources == ["url", "base64"]
        answers = (short, tool, schema, seen)
        assert paid(b) == sum(answer.receipt.cost_nanousd for answer in answers) > 0
        assert all(answer.body["object"] == "chat.completion" for answer in answers)
        assert not list(b.folder.iterdir())


@pytest.mark.parametrize(
    ("fault", "outcome", "batches"),
    [
        ({"status": 400}, errors.ProviderError, 1),
        ({"status": 403}, errors.AuthenticationFailed, 1),
        ({"status": 400, "message": "prompt is too long"}, errors.ContextWindowExceeded, 1),
        ({"status": 529, "times": 1}, None, 2),
        ({"status": 429, "times": 1}, None, 2),
        ({"status": 500, "times": 1}, None, 2),
    ],
)
async def test_an_error_concerns_only_its_request_and_a_temporary_one_is_retried(
    anthropic: OpenBench, fault: dict[str, Any], outcome: Any, batches: int
) -> None:
    async with anthropic(profile(Fault(scope="line", contains="wrong", **fault))) as b:
        results = await b.send(chat("good"), chat("wrong"))
        await b.until_idle()
        good, bad = await b.settled(results, batches=batches)
        assert (good.receipt.attempts, good.receipt.cost_nanousd > 0) == (1, True)
        if outcome:
            assert type(bad) is outcome
        else:
            assert bad.receipt.attempts == 2


async def test_an_expired_request_is_requeued_and_paid_once(anthropic: OpenBench) -> None:
    async with anthropic(profile(expire_at_fraction=0.5)) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.turn()
        b.simulator.profile = profile()
        await b.until_idle(3600)
        assert [batch.status for batch in await b.batches()] == ["completed", "expired"]
        answers = await b.settled(results, batches=2)
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 1, 2, 2]
        assert (paid(b), b.answered()) == (
            sum(answer.receipt.cost_nanousd for answer in answers),
            4,
        )


async def test_a_cancelled_batch_delivers_its_responses_and_the_rest_is_requeued(
    anthropic: OpenBench,
) -> None:
    async with anthropic(profile(in_progress=100)) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.turn(1)
        b.clock.advance(51)
        (live,) = await b.batches()
        await b.scheduler.provider.cancel(live.id)
        assert (await b.scheduler.provider.retrieve(live.id)).status == "cancelling"
        b.clock.advance(1)
        assert (await b.scheduler.provider.retrieve(live.id)).status == "cancelled"
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 1, 2, 2]
        assert b.answered() == 4


async def test_a_batch_that_may_be_the_jobs_is_adopted_after_it_has_ended(
    anthropic: OpenBench,
) -> None:
    async with anthropic(profile(NEVER_ANSWERED, in_progress=7200)) as b:
        results = await b.send(chat("one"), chat("two"))
        for _ in range(30):
            await b.turn(200)
            assert b.states() == ["SUBMITTING"]
        await b.until_idle(200)
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert (sum(b.calls("batches.create").values()), b.answered()) == (1, 2)


async def test_a_batch_is_recognized_although_most_of_its_requests_were_cancelled(
    anthropic: OpenBench,
) -> None:
    async with anthropic(profile(NEVER_ANSWERED, in_progress=1000)) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.turn()
        accounts = {"openai": b.scheduler.provider}
        operator = Operations(b.scheduler.store, accounts, b.scheduler.lane.withdrawal)
        for result in results[:3]:
            assert list((await operator.cancel([str(result.id)])).values()) == ["cancelled"]
        await b.until_idle(100)
        assert (await b.completion(results[3])).receipt.attempts == 1
        assert (b.batches_created(), b.answered()) == (1, 4)


async def test_a_batch_that_was_not_created_is_created_again_only_after_clean_scans(
    anthropic: OpenBench,
) -> None:
    async with anthropic(profile(NEVER_CREATED)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        started = b.clock.now()
        while not b.batches_created():
            await b.turn()
        assert b.clock.now() - started >= 300
        assert b.calls("batches.list")["200"] >= 3
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_a_foreign_batch_of_the_same_size_delays_the_job_but_is_not_adopted(
    anthropic: OpenBench, tmp_path: Path
) -> None:
    lost = Fault(endpoint="batches.create", contains="ours", drop="before_response", times=1)
    async with anthropic(profile(lost, in_progress=5000)) as b:
        theirs = await create_foreign_batch(b, tmp_path, "question-1")
        results = await b.send(chat("ours"))
        for _ in range(20):
            await b.turn(200)
            assert b.batches_created() == 1
        await b.until_idle(200)
        (answer,) = await b.settled(results, batches=2)
        assert answer.receipt.batch_id != theirs
        assert answer.receipt.attempts == 1


async def test_a_foreign_batch_of_another_size_does_not_delay_the_job(
    anthropic: OpenBench, tmp_path: Path
) -> None:
    lost = Fault(endpoint="batches.create", contains="ours", drop="before_response", times=1)
    async with anthropic(profile(lost, in_progress=5000)) as b:
        await create_foreign_batch(b, tmp_path, "question-1", "question-2")
        await b.send(chat("ours"))
        for _ in range(40):
            await b.turn()
        assert b.batches_created() == 2


async def test_a_batch_older_than_the_job_does_not_delay_the_job(
    anthropic: OpenBench, tmp_path: Path
) -> None:
    lost = Fault(endpoint="batches.create", contains="ours", drop="before_response", times=1)
    async with anthropic(profile(lost, in_progress=20_000)) as b:
        await create_foreign_batch(b, tmp_path, "question-1")
        b.clock.advance(4000)
        await b.send(chat("ours"))
        for _ in range(40):
            await b.turn()
        assert b.batches_created() == 2


async def test_another_jobs_batch_of_the_same_size_does_not_delay_the_job(
    anthropic: OpenBench,
) -> None:
    lost = Fault(endpoint="batches.create", contains="lost", drop="before_response", times=1)
    async with anthropic(profile(lost, in_progress=5000)) as b:
        await b.send(chat("lost"), chat("another", "gpt-4o"))
        for _ in range(40):
            await b.turn()
        assert (b.states(), b.batches_created()) == (["SUBMITTED", "SUBMITTED"], 2)


async def test_the_batch_of_an_earlier_attempt_is_not_adopted(anthropic: OpenBench) -> None:
    failed = Fault(scope="line", status=500, times=1)
    lost = Fault(endpoint="batches.create", contains="-2", drop="before_response", times=1)
    async with anthropic(profile(failed, lost)) as b:
        results = await b.send(chat("question"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=2)
        assert answer.receipt.attempts == 2
        assert [line["custom_id"][-2:] for (line,) in orders(b)] == ["-1", "-2"]


async def test_a_request_that_anthropic_does_not_support_fails_alone(anthropic: OpenBench) -> None:
    async with anthropic() as b:
        requests = [chat("seeded", seed=7, return_exceptions=own) for own in (False, True)]
        good, seeded, returned, too = await b.send(chat("good"), *requests, chat("too"))
        error = await b.outcome(seeded)
        assert isinstance(error, errors.ProviderError)
        assert "seed" in str(error)
        assert (await b.outcome(returned))["error"]["message"] == str(error)
        await b.until_idle()
        answers = await b.settled([good, too], batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert [len(order) for order in orders(b)] == [2]


async def test_a_scheduler_on_another_machine_writes_its_own_order_file(
    anthropic: OpenBench,
) -> None:
    async with anthropic() as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_at = "UPLOADED"
        await b.die()
        for path in b.folder.iterdir():
            path.unlink()
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.calls("batches.create") == {"200": 1}


async def test_a_job_may_change_machines_any_number_of_times(
    anthropic: OpenBench,
) -> None:
    busy = Fault(endpoint="batches.create", status=429, times=12)
    async with anthropic(profile(busy)) as b:
        results = await b.send(chat("one"))
        for _ in range(24):
            await b.turn(600)
            for order in b.folder.glob("*.order"):
                order.unlink()
        await b.until_idle(600)
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert b.calls("batches.create") == {"429": 12, "200": 1}


async def test_truncated_results_are_downloaded_again(anthropic: OpenBench) -> None:
    short = Fault(endpoint="files.content", drop="short", times=2)
    torn = Fault(endpoint="files.content", drop="mid_stream", times=1)
    async with anthropic(profile(short, torn)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert b.calls("files.content") == {"200": 3, "dropped": 1}


async def test_a_missing_or_corrupt_line_does_not_stop_the_others(anthropic: OpenBench) -> None:
    lost = Fault(scope="line", contains="lost", write="missing", times=1)
    corrupt = Fault(scope="line", contains="corrupt", write="corrupt", times=1)
    async with anthropic(profile(lost, corrupt)) as b:
        results = await b.send(chat("lost"), chat("corrupt"), chat("good"))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [2, 2, 1]


async def test_the_list_is_read_page_by_page(anthropic: OpenBench, tmp_path: Path) -> None:
    async with anthropic() as b:
        made = [await create_foreign_batch(b, tmp_path, f"request-{n}") for n in range(102)]
        first = await b.scheduler.provider.list(None)
        second = await b.scheduler.provider.list(first.batches[-1].id)
        assert (len(first.batches), first.more, second.more) == (100, True, False)
        assert [batch.id for batch in [*first.batches, *second.batches]] == made[::-1]
