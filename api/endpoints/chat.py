"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.responses import Response

from api.answering import Parts, StreamForm, answer, data, failure, stream, wants_receipt
from api.call import Call
from api.requests import request_of
from api.routing_headers import RECEIPT_KEY
from primarch_fleet import AsyncStream, CompletionRequest


async def create(call: Call) -> Response:
    """Answer a chat, at once or as a stream of `chat.completion.chunk`."""
    request = await request_of(call, CompletionRequest, await call.json())
    ticket = await call.services.fleet.submit(request)
    if not request.streams:
        return await answer(call, request, ticket)

    async def end(chunks: AsyncStream) -> Parts:
        if wants_receipt(call):
            answered = await chunks.result(call.services.config.answer_timeout)
            receipt = answered.receipt.model_dump(mode="json")
            yield data({"object": "chat.completion.chunk", "choices": [], RECEIPT_KEY: receipt})
        yield b"data: [DONE]\n\n"

    return await stream(call, request, ticket, StreamForm(data, failure, end))
