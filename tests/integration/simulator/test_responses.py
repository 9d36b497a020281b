"""The simulator's Responses API and moderations, through OpenAI's library."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import ModerationCreateResponse
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from workers.onebox.simulator import Script
from workers.onebox.simulator.profile import Model, Profile
from workers.onebox.simulator.server import Simulator

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION: Any = {
    "type": "function",
    "name": "look",
    "strict": True,
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}


def validated(response: Any) -> Response:
    return Response.model_validate(response.to_dict(mode="json"), strict=False)


def test_a_response_has_openais_form(sim: Simulator, client: OpenAI) -> None:
    message: Any = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    response = validated(
        client.responses.create(model="m", input=[message], instructions="Be brief.")
    )
    assert response.output_text == "Simulated answer to: Hi"
    assert (response.status, response.instructions) == ("completed", "Be brief.")
    assert sim.invoice()["requests"] == 1


def test_a_stream_has_openais_events(sim: Simulator, client: OpenAI) -> None:
    with client.responses.create(model="m", input="Hi", stream=True, tools=[FUNCTION]) as stream:
        events = [EVENT.validate_python(event.to_dict(mode="json")) for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type.endswith("text.delta"))
    assert text == events[-1].response.output_text == "Simulated answer to: Hi"


def test_a_required_function_is_called_and_a_long_answer_is_incomplete(
    sim: Simulator, client: OpenAI
) -> None:
    call = client.responses.create(
        model="m", input="Hi", tools=[FUNCTION], tool_choice="required", store=False
    )
    assert [item.type for item in validated(call).output] == ["function_call"]
    cut = validated(client.responses.create(model="m", input="a b c d", max_output_tokens=2))
    assert cut.status == "incomplete"


def test_a_response_is_continued_if_it_was_stored(sim: Simulator, client: OpenAI) -> None:
    first = client.responses.create(model="m", input="Hi")
    again = client.responses.create(model="m", input="Hi", previous_response_id=first.id)
    assert again.previous_response_id == first.id
    other = client.responses.create(model="m", input="Hi", store=False)
    for missing in (other.id, "resp_unknown"):
        with pytest.raises(openai.BadRequestError, match="not found"):
            client.responses.create(model="m", input="Hi", previous_response_id=missing)


def test_a_script_changes_a_response(sim: Simulator, client: OpenAI) -> None:
    sim.script(Script(endpoint="responses", merge={"status": "failed"}))
    assert client.responses.create(model="m", input="Hi").status == "failed"


def test_a_model_is_refused_at_an_endpoint_of_another_kind(sim: Simulator, client: OpenAI) -> None:
    models = {"pro": Model(kind="responses"), "guard": Model(kind="moderation")}
    sim.profile = Profile(models=models)
    client.responses.create(model="pro", input="Hi")
    with pytest.raises(openai.NotFoundError, match="not a chat model"):
        client.chat.completions.create(model="pro", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="not supported with the Responses API"):
        client.responses.create(model="guard", input="Hi")
    with pytest.raises(openai.BadRequestError, match="does not support moderations"):
        client.moderations.create(model="pro", input="Hi")


def test_a_moderation_flags_the_categories_that_the_input_names(
    sim: Simulator, client: OpenAI
) -> None:
    sim.profile = Profile(models={"guard": Model(kind="moderation")})
    answer = client.moderations.create(model="guard", input=["hello", "some violence"])
    body = ModerationCreateResponse.model_validate(answer.to_dict(mode="json"))
    assert [result.flagged for result in body.results] == [False, True]
    assert body.results[1].categories.violence
    assert sim.invoice()["total_nanousd"] == 0
