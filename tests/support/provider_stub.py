"""A provider that answers every call and remembers it, in the APIs of several providers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Json = dict[str, Any]

CHAT: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "service_tier": "default",
}
EMBEDDINGS: Json = {
    "object": "list",
    "model": "m",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}
ANTHROPIC: Json = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
GEMINI: Json = {
    "candidates": [
        {
            "content": {"parts": [{"text": "hi"}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
}
#: Parts of paths, and what is answered there; the first that matches counts.
ANSWERS: dict[str, Json] = {
    "embeddings": EMBEDDINGS,
    "messages": ANTHROPIC,
    "generateContent": GEMINI,
    "": CHAT,
}


class Call(NamedTuple):
    """A call that a provider got; the names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: Json


class ProviderStub:
    """The address of the provider, and the calls that it got, oldest first."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[Call] = []

    def bodies(self) -> list[Json]:
        """Return the bodies of the calls, and forget the calls."""
        bodies = [call.body for call in self.calls]
        self.calls.clear()
        return bodies


@contextmanager
def provider_stub() -> Iterator[ProviderStub]:
    """Run the provider on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            stub.calls.append(Call(self.path, headers, json.loads(self.rfile.read(length))))
            answer = next(body for part, body in ANSWERS.items() if part in self.path)
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = ProviderStub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
