"""A stub of every provider on one port: it keeps what it is sent and gives a fixed answer."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

ANSWER = "Hello."
#: The token that the stub gives for a client's secret or a service account's assertion.
ACCESS_TOKEN = "access-token-of-the-stub"
OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "answered",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": ANSWER},
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
ANTHROPIC = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "answered",
    "content": [{"type": "text", "text": ANSWER}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
BEDROCK = {
    "output": {"message": {"role": "assistant", "content": [{"text": ANSWER}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
    "metrics": {"latencyMs": 1},
}
TITAN = {"embedding": [0.25, 0.5], "inputTextTokenCount": 0}
GEMINI = {
    "candidates": [
        {
            "index": 0,
            "finishReason": "STOP",
            "content": {"role": "model", "parts": [{"text": ANSWER}]},
        }
    ],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    "modelVersion": "answered",
}
OLLAMA = {
    "model": "llama3",
    "created_at": "2026-01-01T00:00:00Z",
    "message": {"role": "assistant", "content": ANSWER},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 3,
    "eval_count": 2,
}
TOKEN = {"token_type": "Bearer", "expires_in": 3600, "access_token": ACCESS_TOKEN}
#: By the end of the path.
ANSWERS: dict[str, dict[str, Any]] = {
    "/chat/completions": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/converse": BEDROCK,
    "/invoke": TITAN,
    ":generateContent": GEMINI,
    "/api/chat": OLLAMA,
    "/token": TOKEN,
    "/batches": {"object": "list", "data": [], "has_more": False},
}


class Sent(NamedTuple):
    """One request that the stub received."""

    method: str
    path: str
    query: dict[str, list[str]]
    #: By name in lower case.
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class AccountStub:
    """The running stub."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[Sent] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme, host = ("https", "localhost") if certificate else ("http", "127.0.0.1")
        self.url = f"{scheme}://{host}:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[AccountStub]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def answer(self, sent: Sent) -> dict[str, Any]:
        """The answer to a request; an empty object for a path that no provider has."""
        self.requests.append(sent)
        if sent.path.endswith("/openid-configuration"):
            tenant = f"{self.url}/{sent.path.split('/')[1]}"
            return {
                "issuer": tenant,
                "authorization_endpoint": f"{tenant}/authorize",
                "token_endpoint": f"{tenant}/token",
            }
        return next((ANSWERS[end] for end in ANSWERS if sent.path.endswith(end)), {})

    def only(self, pattern: str) -> Sent:
        """The one request whose path matches a pattern."""
        [sent] = [one for one in self.requests if re.search(pattern, one.path)]
        return sent


def _handler(stub: AccountStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            raw = self.rfile.read(int(headers.get("content-length", 0)))
            query = parse_qs(url.query)
            body = json.dumps(stub.answer(Sent(self.command, url.path, query, headers, raw)))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    return Handler
