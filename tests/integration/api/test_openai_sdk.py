"""The official openai SDK for Python against `fleet serve`, changed in nothing but its base_url."""

import asyncio
import json
import threading
import time
from typing import Any

import openai
import pytest
import redis
from openai import OpenAI
from openai.types.chat import (
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
)
from pydantic import BaseModel

from api.store.responses import task_id_of
from primarch_fleet import Fleet, ProviderError
from primarch_fleet.streaming import stream_key
from tests.integration.api.conftest import Served
from tests.support.api_server import ALPHA, BETA, NARROW
from tests.support.workers import eventually
from workers.onebox.simulator.script import Script

MODEL = "gpt-4o-mini"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class City(BaseModel):
    """An answer with a form."""

    name: str
    people: int


def slow(seconds: float = 60.0) -> Script:
    return Script(delay=seconds)


def test_a_chat_is_answered_with_its_receipt_in_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Simulated answer to: Say hello."
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert "fleet" not in (answer.model_extra or {})
    assert raw.headers["x-fleet-lane"] == "realtime"
    assert raw.headers["x-fleet-deployment"] == "openai-gpt-4o-mini"
    assert float(raw.headers["x-fleet-cost-usd"]) > 0
    assert answer._request_id == raw.headers["x-request-id"]


def test_the_receipt_is_in_the_body_on_request(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_headers={"x-fleet-receipt": "body"}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["fleet"]["tenant_id"] == "alpha"
    assert answer.model_extra["fleet"]["lane"] == "realtime"


def test_a_stream_arrives_in_chunks_and_ends_with_its_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Simulated answer to: Say hello."
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_tools_are_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="required"
    )
    assert answer.choices[0].message.tool_calls
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments), dict)


def test_structured_output_is_parsed(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=City
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def test_embeddings_have_numbers_although_the_sdk_asks_for_base64(client: OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [item.index for item in answer.data] == [0, 1]
    assert all(isinstance(value, float) for value in answer.data[0].embedding)


def test_models_are_the_catalogue(client: OpenAI, served: Served) -> None:
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-4o-mini").owned_by == "primarch-fleet"
    with served.client(NARROW) as narrow:
        assert [model.id for model in narrow.models.list()] == ["gpt-4o-mini"]
        with pytest.raises(openai.NotFoundError):
            narrow.models.retrieve("gpt-4o")


def test_a_response_is_created_and_retrieved(client: OpenAI) -> None:
    created = client.responses.create(model=MODEL, input="Say hello.", metadata={"row": "7"})
    assert created.output_text == "Simulated answer to: Say hello."
    assert created.status == "completed"
    retrieved = client.responses.retrieve(created.id)
    assert retrieved.output_text == created.output_text
    assert retrieved.metadata == {"row": "7"}
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_a_response_that_is_not_stored_cannot_be_retrieved(client: OpenAI) -> None:
    created = client.responses.create(model=MODEL, input="Say hello.", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_a_response_of_another_tenant_does_not_exist(client: OpenAI, served: Served) -> None:
    created = client.responses.create(model=MODEL, input="Say hello.", background=True)
    with served.client(BETA) as other:
        with pytest.raises(openai.NotFoundError) as strange:
            other.responses.retrieve(created.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.cancel(created.id)
        unknown = "resp_" + 32 * "0"
        with pytest.raises(openai.NotFoundError) as missing:
            other.responses.retrieve(unknown)
    told = str(strange.value.message).replace(created.id, unknown)
    assert told == str(missing.value.message)


def test_a_response_in_the_background_is_polled(client: OpenAI) -> None:
    created = client.responses.create(model=MODEL, input="Say hello.", background=True)
    assert created.status == "queued"
    done = eventually(lambda: _ended(client, created.id))
    assert done.status == "completed"
    assert done.output_text == "Simulated answer to: Say hello."
    assert done.background is True


def _ended(client: OpenAI, response_id: str) -> Any:
    response = client.responses.retrieve(response_id)
    return None if response.status in ("queued", "in_progress") else response


def test_a_background_response_is_cancelled(client: OpenAI, served: Served) -> None:
    served.simulator.script(slow())
    created = client.responses.create(model=MODEL, input="Say hello.", background=True)
    eventually(lambda: client.responses.retrieve(created.id).status == "in_progress")
    assert client.responses.cancel(created.id).status == "cancelled"
    assert client.responses.retrieve(created.id).status == "cancelled"


def test_a_background_stream_is_resumed_from_any_event(client: OpenAI, served: Served) -> None:
    served.simulator.script(Script(pause=0.05))
    stream = client.responses.create(model=MODEL, input="Say hello.", background=True, stream=True)
    first = []
    for event in stream:
        first.append(event)
        if len(first) == 4:
            break
    stream.close()  # the response goes on
    assert first[0].type == "response.created"
    response_id = first[0].response.id
    rest = list(
        client.responses.retrieve(
            response_id, stream=True, starting_after=first[-1].sequence_number
        )
    )
    numbers = [event.sequence_number for event in [*first, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.id == response_id
    text = "".join(
        event.delta for event in [*first, *rest] if event.type == "response.output_text.delta"
    )
    assert text == rest[-1].response.output_text == "Simulated answer to: Say hello."


def test_a_stream_whose_answer_has_expired_ends_with_an_error(
    client: OpenAI, valkey_url: str
) -> None:
    stream = client.responses.create(model=MODEL, input="Say hello.", background=True, stream=True)
    created, *_ = list(stream)
    assert created.type == "response.created"
    assert eventually(lambda: _ended(client, created.response.id)).status == "completed"
    task_id = task_id_of(created.response.id)
    with redis.Redis.from_url(valkey_url) as store:
        assert store.delete(stream_key(task_id), f"celery-task-meta-{task_id}") == 2
    *_, last = client.responses.retrieve(created.response.id, stream=True)
    assert last.type == "error"
    assert last.code == "result_expired"
    with pytest.raises(openai.NotFoundError, match="not stored any more"):
        client.responses.retrieve(created.response.id)


def test_a_streamed_response_is_followed_by_the_sdks_helper(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="A city.", text_format=City) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, City)


def test_a_response_that_fails_says_why(client: OpenAI, served: Served) -> None:
    error = {"error": {"message": "too hot", "type": "invalid_request_error", "code": None}}
    served.simulator.script(Script(status=400, body=error))
    created = client.responses.create(model=MODEL, input="Say hello.", background=True)
    done = eventually(lambda: _ended(client, created.id))
    assert done.status == "failed"
    assert done.error is not None
    assert "too hot" in done.error.message


def test_errors_are_the_sdks(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"
    with served.client("sk-fleet-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with served.client(NARROW) as narrow, pytest.raises(openai.PermissionDeniedError):
        narrow.chat.completions.create(model="gpt-4o", messages=HELLO)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"stream_options": {"include_usage": True}},
            "stream_options: only for streams; set stream",
        ),
        (
            {"extra_body": {"fallbacks": ["x"]}},
            "fallbacks: accounts, addresses and routing are configured in fleet.yaml",
        ),
    ],
)
def test_a_wrong_parameter_is_named_as_the_client_wrote_it(
    client: OpenAI, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=HELLO, **parameters)
    assert isinstance(wrong.value.body, dict)
    assert wrong.value.body["message"] == message
    assert wrong.value.param == message.partition(":")[0]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_error_of_a_request_has_its_id(
    client: OpenAI, served: Served, valkey_url: str, is_streamed: bool
) -> None:
    served.simulator.script(Script(status=400, body={"error": {"message": "too hot"}}))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=is_streamed)
    assert refused.value.request_id is not None
    assert refused.value.response.headers["x-fleet-lane"] == "realtime"
    with Fleet(valkey_url) as fleet, pytest.raises(ProviderError, match="too hot"):
        fleet.result(refused.value.request_id, timeout=30)


def test_an_error_of_a_provider_before_the_first_chunk_is_a_status(
    client: OpenAI, served: Served
) -> None:
    error = {"error": {"message": "no", "type": "x", "code": "content_policy_violation"}}
    served.simulator.script(Script(status=400, body=error))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)


def test_the_sdk_retries_what_may_succeed_and_nothing_else(served: Served) -> None:
    """A model that is unknown is asked for once; the SDK repeats what the header allows."""
    seen: list[str] = []

    class Counted(openai.OpenAI):
        def _prepare_request(self, request: Any) -> None:
            seen.append(str(request.url))

    url = f"{served.server.root}/v1"
    with (
        Counted(base_url=url, api_key="sk-fleet-wrong", max_retries=2) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert len(seen) == 1


def test_the_sdk_repeats_a_call_that_a_provider_has_failed(served: Served) -> None:
    """The worker has tried it three times by then; the fourth call is the SDK's second try."""
    served.simulator.reset()
    served.simulator.script(Script(status=500, body={"error": {"message": "down"}}, times=3))
    url = f"{served.server.root}/v1"
    with openai.OpenAI(base_url=url, api_key=ALPHA, max_retries=1) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Simulated answer to: Say hello."
    assert len(served.calls()) == 4


def test_an_idempotency_key_is_answered_once(client: OpenAI, served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": HELLO}
    headers = {"Idempotency-Key": "one"}
    one, two = (client.chat.completions.create(**ask, extra_headers=headers) for _ in range(2))
    assert one._request_id == two._request_id
    assert len(served.calls()) == 1
    ask["messages"] = [{"role": "user", "content": "Something else."}]
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(**ask, extra_headers=headers)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_away_cancels_its_request(
    client: OpenAI, served: Served, valkey_url: str, is_streamed: bool
) -> None:
    served.simulator.script(slow())

    async def leave() -> None:
        url = f"{served.server.root}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=client.api_key) as sdk:
            task = asyncio.ensure_future(
                sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=is_streamed)
            )
            await asyncio.to_thread(eventually, served.calls)
            task.cancel()

    with Fleet(valkey_url) as fleet:
        asyncio.run(leave())
        eventually(lambda: fleet.budget("alpha").day.reserved_nanousd == 0, timeout=20)


def test_lanes_and_tiers_are_chosen_by_header_and_metadata(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="batch answers within hours"):
        client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"x-fleet-lane": "batch"}
        )
    response = client.responses.create(
        model=MODEL, input="Hello.", background=True, metadata={"x-fleet-lane": "batch"}
    )
    assert response.status == "queued"
    assert client.responses.cancel(response.id).status == "cancelled"
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, service_tier="default"
    )
    assert raw.headers["x-fleet-reason"] == "asked for"
    with pytest.raises(openai.BadRequestError, match="x-fleet-line"):
        client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"x-fleet-line": "local"}
        )


def test_many_streams_are_open_at_once(client: OpenAI, served: Served) -> None:
    """Each has all its chunks; the threads of the server bound nothing."""
    served.simulator.script(Script(pause=0.2))
    streams, texts = 40, []

    async def read() -> None:
        url = f"{served.server.root}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=client.api_key, timeout=60) as sdk:

            async def one() -> None:
                parts = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
                texts.append("".join([part.choices[0].delta.content or "" async for part in parts]))

            await asyncio.gather(*(one() for _ in range(streams)))

    asyncio.run(read())
    assert texts == ["Simulated answer to: Say hello."] * streams


def test_a_chat_is_answered_while_another_waits(client: OpenAI, served: Served) -> None:
    served.simulator.script(Script(delay=1.0, contains="slowly"))
    ended: dict[str, float] = {}

    def ask(text: str) -> None:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])
        ended[text] = time.monotonic()

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("slowly", "at once")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ended["at once"] < ended["slowly"]
