"""OpenAI's Responses API on the batch lane, and models that have nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from config.contradictions import contradictions
from config.fleet import FleetConfig
from primarch_fleet import ResponsesRequest
from tests.support.batch_fixture import OpenBench, chat, config, fleet_app, open_bench
from workers.onebox.simulator import Script

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def respond(text: str, model: str = "gpt-4o-mini", **fields: Any) -> ResponsesRequest:
    return ResponsesRequest(model=model, input=text, **fields)


async def test_a_response_is_answered_in_a_batch_of_its_endpoint(opened: OpenBench) -> None:
    async with opened() as b:
        requests = [respond("one", instructions="Be brief."), respond("two", "gpt-5-pro")]
        results = await b.send(*requests, chat("three"))
        await b.until_idle()
        answers = await b.completions(results)
        for text, answer in zip(("one", "two"), answers, strict=False):
            assert Response.model_validate(answer.body).output_text == answer.text
            assert answer.text == f"Simulated answer to: {text}"
            usage = answer.body["usage"]
            assert answer.receipt.input_tokens == usage["input_tokens"] > 0
            assert answer.receipt.output_tokens == usage["output_tokens"] > 0
        assert answers[0].body["instructions"] == "Be brief."
        assert b.batches_created() == 3
        paid = sum(answer.receipt.cost_nanousd for answer in answers)
        assert paid == b.simulator.invoice()["total_nanousd"]


async def test_a_chat_of_a_model_that_has_only_responses_is_answered(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line goes to /v1/responses, and its answer is a chat completion."""
    monkeypatch.setenv("TEST_KEY", "key")
    async with opened() as b:
        call = chat("how?", "gpt-5-pro", tools=[WEATHER], tool_choice="required")
        results = await b.send(chat("why?", "gpt-5-pro", max_tokens=50), call)
        await b.until_idle()
        text, tool = await b.completions(results)
        completion = ChatCompletion.model_validate(text.body, strict=True)
        assert completion.choices[0].message.content == "Simulated answer to: why?"
        assert completion.choices[0].finish_reason == "stop"
        (called,) = tool.body["choices"][0]["message"]["tool_calls"]
        assert called["function"]["name"] == "weather"
        receipts = [text.receipt, tool.receipt]
        assert text.receipt.output_tokens == text.body["usage"]["completion_tokens"] > 0
        paid = sum(receipt.cost_nanousd for receipt in receipts)
        assert paid == b.simulator.invoice()["total_nanousd"] > 0
        assert b.batches_created() == 1


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-pro"])
async def test_a_response_that_failed_is_sent_again(opened: OpenBench, model: str) -> None:
    failed = {"status": "failed", "error": {"code": "server_error", "message": "boom"}}
    async with opened() as b:
        b.simulator.script(Script(scope="line", merge=failed, times=1))
        (result,) = await b.send(respond("one", model))
        await b.until_idle()
        answer = await b.completion(result)
        assert answer.text == "Simulated answer to: one"
        assert answer.receipt.attempts == 2


async def test_an_incomplete_response_is_an_answer(opened: OpenBench) -> None:
    async with opened() as b:
        (result,) = await b.send(respond("one two three four", max_output_tokens=3))
        await b.until_idle()
        body = (await b.completion(result)).body
        assert Response.model_validate(body).status == "incomplete"


@pytest.mark.parametrize("kind", ["anthropic", "groq", "hosted_vllm"])
def test_a_provider_without_batches_of_responses_is_a_configuration_error(kind: str) -> None:
    found = [words for _, words in contradictions(config(kind))]
    assert f"{kind} has no batches for responses; " in " ".join(found)


def test_the_price_list_tells_that_a_model_has_only_responses() -> None:
    values = config().model_dump(mode="json", exclude_unset=True)
    for deployment in values["deployments"]:
        del deployment["kind"], deployment["price"]
        deployment["free"] = deployment["model"] in ("guard", "vectors")
    kinds = {one.model: one.kind for one in FleetConfig.model_validate(values).deployments}
    assert kinds["gpt-5-pro"] == "responses"
    assert kinds["gpt-4o"] == "chat"
