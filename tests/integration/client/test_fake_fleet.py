"""The contract of the clients, on the real ones and on their fakes: none may behave otherwise."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from pydantic import BaseModel

from primarch_fleet import AsyncFleet, Fleet, errors
from primarch_fleet.testing import AsyncFakeFleet, FakeFleet
from primarch_fleet.testing.fake_fleet import Script
from tests.support.client_calls import CALLS, WRONG_CALLS
from tests.support.producer import CATALOGUE, request
from tests.support.worker_stub import worker_stub


class Client:
    """Calls a client, sync or asyncio, and says what its worker answers.

    Args:
        fleet: The client.
        script: The worker, or the fake itself: `answer`, `hold` and `release`.
    """

    def __init__(self, fleet: Any, script: Any) -> None:
        self.fleet, self.script = fleet, script

    def call(self, call: Callable[[Any], Any]) -> Any:
        """Return the result of a call, and what an iterator yields as a list."""
        result = call(self.fleet)
        return list(result) if isinstance(result, Iterator) else result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.call(lambda one: getattr(one, name)(*args, **options))


class AsyncClient(Client):
    def __init__(self, fleet: Any, script: Any, runner: asyncio.Runner) -> None:
        super().__init__(fleet, script)
        self._runner = runner

    def call(self, call: Callable[[Any], Any]) -> Any:
        async def work() -> Any:
            result = call(self.fleet)
            if inspect.isawaitable(result):
                result = await result
            return [one async for one in result] if isinstance(result, AsyncIterator) else result

        return self._runner.run(work())


@contextmanager
def real(url: str) -> Iterator[Client]:
    with worker_stub(url) as worker, Fleet(url) as fleet:
        yield Client(fleet, worker)


@contextmanager
def real_async(url: str) -> Iterator[Client]:
    with worker_stub(url) as worker, asyncio.Runner() as runner:
        client = AsyncClient(create(runner, lambda: AsyncFleet(url)), worker, runner)
        yield client
        client.close()


@contextmanager
def fake(_: str) -> Iterator[Client]:
    with FakeFleet(catalogue=CATALOGUE) as fleet:
        yield Client(fleet, fleet)


@contextmanager
def fake_async(_: str) -> Iterator[Client]:
    with asyncio.Runner() as runner:
        fleet = create(runner, lambda: AsyncFakeFleet(catalogue=CATALOGUE))
        client = AsyncClient(fleet, fleet, runner)
        yield client
        client.close()


def create(runner: asyncio.Runner, build: Callable[[], Any]) -> Any:
    async def work() -> Any:
        return build()

    return runner.run(work())


@pytest.fixture(params=[real, real_async, fake, fake_async])
def client(
    request: pytest.FixtureRequest, valkey_url: str, server: redis.Redis
) -> Iterator[Client]:
    with request.param(valkey_url) as client:
        yield client


def test_the_fakes_have_the_methods_of_the_clients_and_no_copies_of_them() -> None:
    for kind, original in ((FakeFleet, Fleet), (AsyncFakeFleet, AsyncFleet)):
        own = {name for one in (kind, Script) for name in vars(one) if not name.startswith("_")}
        assert own.isdisjoint(name for name, _ in inspect.getmembers(original))


def test_a_result_has_the_scripted_answer_and_a_receipt(client: Client) -> None:
    client.script.answer = "four"
    fields: dict[str, Any] = {"tenant_id": "t", "user_id": "u", "metadata": {"a": 1}}
    ticket = client.submit(request(**fields))
    completion = client.result(ticket, 10)
    assert completion.text == "four"
    receipt = completion.receipt
    assert (
        (receipt.lane, receipt.reason) == (ticket.lane, ticket.reason) == ("realtime", "asked for")
    )
    assert (receipt.tenant_id, receipt.user_id, receipt.metadata) == ("t", "u", {"a": 1})
    assert receipt.cost_nanousd == 1_000 * receipt.input_tokens + 2_000 * receipt.output_tokens > 0
    assert receipt.saving_nanousd == 0


def test_results_have_the_order_of_their_tickets(client: Client) -> None:
    client.script.answer = lambda one: one.metadata["text"]
    tickets = client.submit_many(request(metadata={"text": str(n)}) for n in range(5))
    tickets = [tickets[3].id, *tickets, tickets[0]]
    assert [one.text for one in client.results(tickets, 10)] == ["3", *"01234", "0"]
    done = client.as_completed(tickets, 10)
    assert sorted(one.result().text for one in done) == sorted("30123404"[:7])
    assert {id(one.ticket) for one in done} == {id(one) for one in tickets}


def test_a_failed_request_raises_its_error(client: Client) -> None:
    client.script.answer = ["one", errors.RateLimited("too many"), "three"]
    tickets = [client.submit(request()) for _ in range(3)]
    with pytest.raises(errors.RateLimited, match=r"^too many$"):
        client.result(tickets[1], 10)
    with pytest.raises(errors.RateLimited):
        client.results(tickets, 10)
    first, error, third = client.results(tickets, 10, return_exceptions=True)
    assert (first.text, str(error), third.text) == ("one", "too many", "three")
    assert [one.exception() is None for one in client.as_completed(tickets, 10)].count(False) == 1
    assert [client.status(one) for one in tickets] == ["SUCCESS", "FAILURE", "SUCCESS"]
    progress = client.progress(tickets)
    assert (progress.done, progress.total, progress.failed) == (3, 3, 1)


def test_a_wait_for_a_request_that_is_held_times_out(client: Client) -> None:
    answered = client.submit(request())
    client.result(answered, 10)
    client.script.hold()
    held = client.submit(request())
    with pytest.raises(errors.ResultTimeout, match=r"^no result within 0\.1 s; the request contin"):
        client.result(held, 0.1)
    with pytest.raises(errors.ResultTimeout, match=r"^1 of 2 requests have no result within 0\.1"):
        client.results([answered, held], 0.1)
    with pytest.raises(errors.ResultTimeout, match=r"^1 of 1 requests"):
        client.as_completed([held], 0.1)
    _, missing = client.results([answered, held], 0.1, return_exceptions=True)
    assert isinstance(missing, errors.ResultTimeout)
    assert (client.status(held), client.progress([held]).done) == ("PENDING", 0)
    client.script.release()
    assert client.result(held, 10).text == client.result(answered).text
    assert client.progress([held]).done == 1


def test_a_request_that_is_held_can_be_cancelled(client: Client) -> None:
    finished = client.submit(request())
    client.result(finished, 10)
    client.script.hold()
    held, other = client.submit_many([request(), request()])
    assert client.cancel(held, 5) is True
    assert client.cancel(held.id, 5) is True
    assert client.cancel(finished, 5) is False
    assert client.cancel_many([other, finished, held], 5) == [True, False, True]
    client.script.release()
    for ticket in (held, other):
        with pytest.raises(errors.Cancelled):
            client.result(ticket, 10)
        assert client.status(ticket) == "REVOKED"
    with pytest.raises(errors.UnknownRequest, match=r"^Nothing is known of this id"):
        client.cancel("unknown", 5)
    with pytest.raises(errors.UnknownRequest, match=r"^tickets\[1\]: Nothing is known"):
        client.cancel_many([held, "unknown"], 5)
    cancelled, unknown = client.cancel_many([held, "unknown"], 5, return_exceptions=True)
    assert (cancelled, str(unknown)) == (True, str(errors.UnknownRequest()))
    assert client.status("unknown") == "PENDING"


def test_a_stream_has_the_parts_of_the_answer(client: Client) -> None:
    client.script.answer = "To be or not to be"
    ticket = client.submit(request(stream=True))
    chunks = client.stream(ticket, timeout=10)
    assert "".join(one.text for one in chunks) == "To be or not to be"
    assert len([one for one in chunks if one.text]) == 6
    rest = client.stream(ticket.id, after=chunks[3].id, timeout=10)
    assert rest == chunks[4:]
    assert "".join(one.text for one in client.stream(request(), timeout=10)) == "To be or not to be"
    assert client.result(ticket, 10).receipt.time_to_first_token is not None


def test_a_stream_fails_as_its_request_does(client: Client) -> None:
    client.script.answer = errors.ProviderTimeout
    with pytest.raises(errors.ProviderTimeout):
        client.stream(request(), timeout=10)
    client.script.hold()
    held = client.submit(request(stream=True))
    with pytest.raises(errors.ResultTimeout, match=r"^no chunk within 0\.1 s"):
        client.stream(held, timeout=0.1)
    with pytest.raises(errors.InvalidRequest, match=r"^stream: a batch cannot stream"):
        client.stream(client.submit(request(lane="batch")))
    client.script.answer = "plain"
    client.script.release()
    plain = client.submit(request())
    with pytest.raises(errors.StreamInterrupted, match="its stream does not"):
        client.stream(plain, timeout=10)


def test_an_idempotency_key_stands_for_one_request(client: Client) -> None:
    first = client.submit(request(idempotency_key="k"))
    text = client.result(first, 10).text
    client.script.answer = "another answer"
    again, other = client.submit_many([request(idempotency_key="k"), request()])
    assert (again.id, other.id == first.id) == (first.id, False)
    assert client.result(again, 10).text == text
    assert client.result(other, 10).text == "another answer"
    with pytest.raises(errors.IdempotencyConflict):
        client.submit(request("another question", idempotency_key="k"))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "absent"}, errors.UnknownModel, "model: 'absent' is not served"),
        ({"lane": "local"}, errors.InvalidRequest, "lane"),
        ({"text": "x" * 3_000}, errors.RequestTooLarge, "request"),
        (
            {"deadline": datetime.now(UTC) - timedelta(seconds=5)},
            errors.DeadlineExceeded,
            "deadline",
        ),
    ],
)
def test_a_wrong_request_is_refused_at_the_submit(
    client: Client, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        client.submit(request(**fields))
    with pytest.raises(error, match=rf"^requests\[1\]\.{message}"):
        client.submit_many([request(), request(**fields)])
    client.script.hold()
    assert client.progress([client.submit(request())]).done == 0


def test_the_catalogue_and_the_budget_are_those_of_the_fleet(client: Client) -> None:
    budget = client.budget("t")
    assert (budget.day.spent_nanousd, budget.month.reserved_nanousd) == (0, 0)
    assert budget.day.cap_nanousd is None
    assert budget.day.resets_at > datetime.now(UTC)
    if isinstance(client.fleet, Fleet):
        assert client.catalogue() == CATALOGUE


class Answer(BaseModel):
    number: int


def test_a_structured_answer_is_parsed(client: Client) -> None:
    client.script.answer = Answer(number=4)
    ticket = client.submit(request(response_format=Answer))
    assert client.result(ticket, 10).parsed == Answer(number=4)
    (done,) = client.as_completed([ticket], 10)
    assert done.result().parsed == Answer(number=4)


@pytest.mark.parametrize(("message", "call"), WRONG_CALLS, ids=[one for one, _ in WRONG_CALLS])
def test_a_wrong_argument_is_the_same_error(
    client: Client, message: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError) as caught:
        client.call(call)
    assert re.match(message, str(caught.value))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_closed_client_says_so(client: Client, call: Callable[[Any], Any]) -> None:
    client.script.hold()
    client.submit(request())
    client.close()
    with pytest.raises(errors.ClientClosed):
        client.call(call)
