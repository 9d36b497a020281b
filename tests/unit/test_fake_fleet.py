"""The scripts of the fakes. Their contract with the clients: tests/integration/client."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from primarch_fleet import (
    AsyncFleet,
    Completion,
    CompletionRequest,
    EmbeddingRequest,
    Fleet,
    ModerationRequest,
    ResponsesRequest,
    errors,
)
from primarch_fleet.testing import AsyncFakeFleet, FakeFleet, fake_completion
from tests.support.workers import eventually


def chat(text: str = "2+2?", **fields: Any) -> CompletionRequest:
    return CompletionRequest(
        model="gpt-4o-mini", messages=[{"role": "user", "content": text}], **fields
    )


def ask(fleet: Fleet, text: str = "2+2?") -> str:
    """What a service has."""
    return fleet.result(fleet.submit(chat(text)), timeout=30).text


async def ask_async(fleet: AsyncFleet) -> str:
    return (await fleet.result(await fleet.submit(chat()), timeout=30)).text


def test_a_service_that_takes_a_client_takes_its_fake() -> None:
    assert ask(FakeFleet()) == "This is the default answer of FakeFleet."

    async def work() -> str:
        async with AsyncFakeFleet("four") as fleet:
            return await ask_async(fleet)

    assert asyncio.run(work()) == "four"


def test_a_script_is_an_answer_a_list_or_a_function() -> None:
    assert ask(FakeFleet("four")) == "four"
    assert ask(FakeFleet(fake_completion("five"))) == "five"
    fleet = FakeFleet(lambda request: request.messages[0]["content"].upper())
    assert ask(fleet, "hello") == "HELLO"
    fleet.answer = ["one", errors.RateLimited, "three"]
    assert ask(fleet) == "one"
    with pytest.raises(errors.RateLimited, match="rate limit"):
        ask(fleet)
    assert ask(fleet) == "three"
    with pytest.raises(IndexError, match="the list has 3 answers"):
        ask(fleet)


@pytest.mark.parametrize("answer", [5, None, ValueError("no"), [5]])
def test_an_answer_of_a_wrong_type_is_an_error_that_says_what_to_pass(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"^answer: pass a text, .* not a value of type"):
        ask(FakeFleet(answer))


@pytest.mark.parametrize(
    "error",
    [errors.LaneFull("full"), errors.FleetUnavailable, errors.UnknownModel, errors.BudgetExceeded],
)
def test_what_the_fleet_refuses_is_raised_by_the_submit(error: Any) -> None:
    fleet = FakeFleet([error, "an answer"])
    with pytest.raises(errors.FleetError) as caught:
        fleet.submit(chat())
    assert caught.type in (error, type(error))
    assert fleet.requests == []
    assert ask(fleet) == "an answer"


def test_a_scripted_timeout_ends_each_wait_at_once() -> None:
    fleet = FakeFleet(errors.ResultTimeout)
    ticket = fleet.submit(chat())
    with pytest.raises(errors.ResultTimeout, match=r"^no result within 3600 s"):
        fleet.result(ticket, timeout=3600)
    with pytest.raises(errors.ResultTimeout, match=r"^1 of 1 requests"):
        list(fleet.as_completed([ticket], timeout=3600))

    async def work() -> None:
        async with AsyncFakeFleet([errors.ResultTimeout, "four"]) as other:
            lost, answered = await other.submit_many([chat(), chat()])
            with pytest.raises(errors.ResultTimeout, match=r"^no result within 3600 s"):
                await other.result(lost, timeout=3600)
            results = await other.results([lost, answered], timeout=3600, return_exceptions=True)
            assert isinstance(results[0], errors.ResultTimeout)
            assert isinstance(results[1], Completion)

    asyncio.run(work())


def test_the_requests_and_their_tickets_are_there_to_be_asserted() -> None:
    fleet = FakeFleet()
    deadline = datetime.now(UTC) + timedelta(minutes=1)
    fleet.submit(chat(tenant_id="t", tags=["eu"], deadline=deadline, idempotency_key="k"))
    fleet.submit(chat(tenant_id="t", idempotency_key="k"))
    fleet.submit(chat(lane="batch"))
    first, second = fleet.requests
    assert (first.tenant_id, first.tags, first.deadline) == ("t", ["eu"], deadline)
    assert (first.idempotency_key, second.lane) == ("k", "batch")
    assert [ticket.lane for ticket in fleet.tickets] == ["realtime", "batch"]


def test_held_requests_are_answered_one_by_one() -> None:
    fleet = FakeFleet("four")
    fleet.hold()
    first, second = fleet.submit(chat()), fleet.submit(chat(lane="batch"))
    assert (fleet.status(first), fleet.status(second)) == ("PENDING", "PARKED")
    fleet.release(second)
    assert [one.ticket for one in fleet.as_completed([second])] == [second]
    assert fleet.progress([first, second]).done == 1
    with pytest.raises(errors.UnknownRequest):
        fleet.release("unknown")
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(fleet.result(first)))
    thread.start()
    fleet.release()
    thread.join()
    assert waiting[0].text == "four"
    assert ask(fleet) == "four"


def test_an_unknown_id_is_an_error_at_once() -> None:
    fleet = FakeFleet()
    with pytest.raises(errors.UnknownRequest):
        fleet.result("unknown")
    (done,) = fleet.as_completed(["unknown"])
    assert isinstance(done.exception(), errors.UnknownRequest)

    async def work() -> None:
        async with AsyncFakeFleet() as other:
            with pytest.raises(errors.UnknownRequest):
                await other.result("unknown")

    asyncio.run(work())


def test_waits_end_when_the_fake_is_closed() -> None:
    fleet, found = FakeFleet(), []
    fleet.hold()
    ticket = fleet.submit(chat(stream=True))

    def wait(call: Any) -> None:
        try:
            call()
        except errors.ClientClosed as error:
            found.append(error)

    calls = [lambda: fleet.result(ticket), lambda: list(fleet.stream(ticket))]
    threads = [threading.Thread(target=wait, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    fleet.close()
    eventually(lambda: len(found) == 2)

    async def work() -> None:
        other = AsyncFakeFleet()
        other.hold()
        waiting = asyncio.create_task(other.result(await other.submit(chat())))
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(errors.ClientClosed):
            await waiting

    asyncio.run(work())


def test_receipts_are_plausible_and_can_be_set() -> None:
    fleet = FakeFleet(receipt={"provider": "azure", "fallbacks": 1})
    realtime = fleet.result(fleet.submit(chat())).receipt
    batch = fleet.result(fleet.submit(chat(lane="batch"))).receipt
    assert (realtime.provider, realtime.fallbacks, realtime.simulated) == ("azure", 1, True)
    assert realtime.cost_nanousd == realtime.list_cost_nanousd == batch.list_cost_nanousd > 0
    assert batch.cost_nanousd * 2 == batch.list_cost_nanousd
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"choices": [{"message": {"content": "four"}, "finish_reason": "stop"}], "usage": usage}
    fleet.answer = body
    answer = fleet.result(fleet.submit(chat()))
    assert (answer.receipt.input_tokens, answer.receipt.output_tokens) == (10, 5)
    assert answer.receipt.cost_nanousd == 10 * 1_000 + 5 * 2_000
    assert fake_completion("x", cost_nanousd=5).receipt.cost_nanousd == 5


def test_default_answers_have_the_types_of_the_openai_sdk() -> None:
    fleet = FakeFleet()
    kinds: list[tuple[Any, Any]] = [
        (chat(), ChatCompletion),
        (ResponsesRequest(model="gpt-5", input="2+2?"), Response),
        (EmbeddingRequest(model="e", input=["a", "b"]), CreateEmbeddingResponse),
        (ModerationRequest(model="o", input=["a", "b"]), ModerationCreateResponse),
    ]
    for request, kind in kinds:
        completion = fleet.result(fleet.submit(request))
        parsed = kind.model_validate(completion.body)
        assert parsed.model == request.model
    assert len(fleet.result(fleet.tickets[2]).body["data"]) == 2
    assert not fleet.result(fleet.tickets[3]).body["results"][1]["flagged"]


@pytest.mark.parametrize(
    "request_", [chat(stream_options={"include_usage": True}, stream=True), chat(stream=True)]
)
def test_a_stream_ends_as_those_of_openai_do(request_: CompletionRequest) -> None:
    chunks = list(FakeFleet("To be or not").stream(request_))
    with_choices = [chunk.body for chunk in chunks if chunk.body["choices"]]
    assert with_choices[-1]["choices"][0]["finish_reason"] == "stop"
    assert bool(chunks[-1].body.get("usage")) is request_.wants_usage


def test_a_response_streams_its_events_and_a_chat_its_tool_calls() -> None:
    events = list(FakeFleet("To be").stream(ResponsesRequest(model="gpt-5", input="Hi")))
    assert [event.body["type"].rpartition(".")[2] for event in events] == [
        "created",
        "delta",
        "delta",
        "completed",
    ]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    *_, calls, end = FakeFleet(body).stream(chat())
    assert calls.body["choices"][0]["delta"]["tool_calls"] == [{"index": 0} | call]
    assert end.body["choices"][0]["finish_reason"] == "tool_calls"


def test_the_celery_app_is_not_supported() -> None:
    with pytest.raises(NotImplementedError, match="has no Celery app"):
        _ = FakeFleet().app
