"""Requests for OpenAI's Responses API: what is checked at submit, without Redis."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from config.endpoints import batch_endpoints, endpoints
from primarch_fleet import Chunk, CompletionRequest, EmbeddingRequest, ResponsesRequest, routing
from primarch_fleet.answers import form_of
from primarch_fleet.catalogue import Catalogue, Model, Offer
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.prices import Rates

NOW = datetime(2026, 11, 28, tzinfo=UTC)
RATES = Rates(input=1, output=2)
MESSAGE = {"type": "message", "role": "user", "content": "Hello"}


def respond(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest(**{"model": "m", "input": "Hello", **fields})


def catalogue(*batch: str) -> Catalogue:
    """A chat model on all lanes, whose batches serve these endpoints."""
    chats = endpoints("chat")
    offers = {
        "realtime": Offer(queue="realtime", price=RATES, endpoints=chats),
        "local": Offer(queue="local.m", price=RATES, endpoints=chats),
        "batch": Offer(queue="batch", price=RATES, endpoints=batch),
    }
    model = Model(kind="chat", lanes=offers, list_price=RATES)
    return Catalogue(models={"m": model}, completion_window=86_400, max_request_bytes=10_000)


def lane_of(request: ResponsesRequest, *batch: str) -> str:
    served = catalogue(*batch or endpoints("chat"))
    return routing.route(request, request.to_wire(), served, NOW).lane


@pytest.mark.parametrize(
    ("fields", "lane", "why"),
    [
        ({"previous_response_id": "resp_1"}, "local", "previous_response_id"),
        ({"previous_response_id": "resp_1"}, "batch", "only the realtime lane finds"),
        ({"conversation": "conv_1"}, "batch", "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "local", "prompt"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "batch", "item_reference"),
        ({"input": [{"id": "msg_1"}]}, "local", "item_reference"),
        ({"store": True}, "local", "store"),
        ({"tools": [{"type": "web_search"}]}, "local", "web_search"),
        ({"tags": ["eu"]}, "batch", "tags"),
    ],
)
def test_a_lane_that_does_not_support_a_field_is_refused_by_name_and_passed_over(
    fields: dict[str, Any], lane: Any, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        lane_of(respond(lane=lane, **fields))
    if "tags" not in fields:
        assert lane_of(respond(cost_preference="cost", **fields)) != lane


def test_a_batch_without_the_endpoint_is_refused_by_name_and_passed_over() -> None:
    chats = CompletionRequest.endpoint
    with pytest.raises(InvalidRequest, match="no /v1/responses on the batch lane"):
        lane_of(respond(lane="batch"), chats)
    assert lane_of(respond(cost_preference="cost"), chats) == "local"
    assert lane_of(respond(cost_preference="cost"), chats, "/v1/responses") == "batch"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"background": True}, "background: every request runs in the background"),
        ({"stream": True, "lane": "batch"}, "batch cannot stream"),
        ({"max_cost_nanousd": 5}, "max_output_tokens"),
        ({"input": None}, "input: pass a text"),
        ({"input": ""}, "input: pass a text"),
        ({"input": []}, "input: pass a text"),
        ({"input": "", "prompt": {"id": "pmpt_1"}}, "input: pass a text"),
        ({"extra_body": {"instructions": "x"}}, "set the field instructions"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        respond(**fields)


def test_the_prefix_ends_with_the_first_message_of_the_user() -> None:
    opening = [{"role": "developer", "content": "Be brief."}, MESSAGE]
    first = respond(input=opening)
    later = respond(input=[*opening, {"role": "assistant", "content": "Hi"}, MESSAGE])
    assert first.prefixes() == later.prefixes()
    assert len(respond(instructions="Be brief.").prefixes()) == 2
    assert respond().prefixes() != respond(tenant_id="other").prefixes()
    assert respond().prefixes(shared=True) == respond(tenant_id="other").prefixes(shared=True)


def test_a_usage_has_each_count_of_openai_s() -> None:
    usage = {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 2, "audio_tokens": None}}
    assert ResponsesRequest.normalized({"usage": usage})["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert ResponsesRequest.normalized({"usage": None}) == {"usage": None}


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        ({"status": "completed"}, True),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, True),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, False),
        ({"status": "failed"}, False),
    ],
)
def test_only_complete_responses_are_cached(body: dict[str, Any], complete: bool) -> None:
    answer = {"output": [], **body}
    assert form_of(answer).is_complete(answer) is complete


def test_the_text_of_an_event_is_that_of_the_answer_only() -> None:
    kinds = ("output_text", "reasoning_text", "function_call_arguments")
    chunks = [Chunk("1-1", {"type": f"response.{kind}.delta", "delta": "a"}) for kind in kinds]
    assert [chunk.text for chunk in chunks] == ["a", "", ""]
    assert all(form_of(chunk.body).has_token(chunk.body) for chunk in chunks)


def test_a_model_answers_the_requests_of_its_kind_where_its_provider_has_batches() -> None:
    chat, respond, embed = (
        kind.endpoint for kind in (CompletionRequest, ResponsesRequest, EmbeddingRequest)
    )
    assert endpoints("responses") == endpoints("chat") == (chat, respond)
    assert batch_endpoints("responses", "openai") == (chat, respond)
    assert batch_endpoints("responses", "groq") == ()
    assert batch_endpoints("chat", "groq") == (chat,)
    assert batch_endpoints("embedding", "openai") == (embed,)
