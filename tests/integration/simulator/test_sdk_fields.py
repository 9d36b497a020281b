"""The other way round: each field of the SDK's types is sent, or a table says that it is not."""

from typing import Any

import httpx
import pytest
from anthropic.types import Message
from openai import OpenAI
from openai.types import Batch, CreateEmbeddingResponse, FileObject
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.integration.simulator.batch_file import create, line
from tests.integration.simulator.conformance import unsent
from workers.onebox.simulator import VirtualClock
from workers.onebox.simulator.anthropic_form import message
from workers.onebox.simulator.chat import complete
from workers.onebox.simulator.stream import chunks

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}
REQUESTS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 2},
    {"tools": [TOOL], "tool_choice": "required"},
    {"modalities": ["audio"]},
]
BODIES = [
    complete({"model": "m", "messages": [{"role": "user", "content": "why?"}], **changes}).body(
        "chatcmpl-1", 5
    )
    for changes in REQUESTS
]
#: Fields that only a script sends.
COMPLETION = {
    "choices.logprobs.refusal",
    "choices.message.annotations.type",
    "choices.message.annotations.url_citation",
    "choices.message.function_call",
    "choices.message.refusal",
    "choices.message.tool_calls.custom",
    "moderation",
    "usage.prompt_tokens_details.cache_write_tokens",
}
CHUNK = {
    "choices.delta.function_call",
    "choices.delta.refusal",
    "choices.logprobs.refusal",
    "moderation",
    "usage.prompt_tokens_details.cache_write_tokens",
}


def test_a_completion_has_every_field_of_the_sdk_or_says_that_it_has_not() -> None:
    assert unsent(ChatCompletion, BODIES) == COMPLETION


def test_the_chunks_have_every_field_of_the_sdk_or_say_that_they_have_not() -> None:
    sent = [chunk for body in BODIES for chunk in chunks(body, include_usage=True)]
    assert unsent(ChatCompletionChunk, sent) == CHUNK


def test_embeddings_files_and_batches_have_every_field_of_the_sdk(
    client: OpenAI, http: httpx.Client, clock: VirtualClock
) -> None:
    embedding = http.post("/embeddings", json={"model": "e", "input": "a"}).json()
    assert unsent(CreateEmbeddingResponse, [embedding]) == set()
    batch = create(client, [line("r0")], metadata={"a": "b"})
    clock.advance(10)
    file = http.get(f"/files/{batch.input_file_id}").json()
    assert unsent(FileObject, [file]) == {"status_details"}
    ended = http.get(f"/batches/{batch.id}").json()
    times = {"failed_at", "expired_at", "cancelling_at", "cancelled_at"}
    assert unsent(Batch, [ended]) == {"errors", "error_file_id", *times}


def test_a_message_has_every_field_of_anthropics_sdk_that_it_needs() -> None:
    fields = {path for path in unsent(Message, map(message, BODIES)) if "." not in path}
    assert fields == {"container", "diagnostics", "stop_details", "stop_sequence"}


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ({}, {"id", "choices"}),
        ({"choices": [{}]}, {"id", "choices.finish_reason", "choices.message"}),
        ({"choices": [{"message": {}}, {"finish_reason": "stop"}]}, {"choices.message.audio"}),
    ],
)
def test_a_field_that_is_not_sent_is_found_at_any_depth(
    value: dict[str, Any], missing: set[str]
) -> None:
    assert missing <= unsent(ChatCompletion, [value])
