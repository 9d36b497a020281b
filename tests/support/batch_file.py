"""An OpenAI batch file as data engineers have them: every endpoint, odd lines, bad lines."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

from tests.support.workers import REPOSITORY

#: Lines that are no request, or that the fleet refuses, each with a part of the reason.
BAD_LINES: dict[bytes, str] = {
    b'{"custom_id": "cut", "method": "POST", "url"': "not JSON",
    b'["custom_id", "list"]': "no JSON object",
    b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}': "custom_id: missing",
    b'{"custom_id": "chat-1", "method": "POST", "url": "/v1/embeddings", "body": {}}': "earlier",
    b'{"custom_id": "get", "method": "GET", "url": "/v1/embeddings", "body": {}}': "POST",
    b'{"custom_id": "near", "method": "POST", "url": "/v1/chat/completion", "body": {}}': (
        "did you mean /v1/chat/completions?"
    ),
    b'{"custom_id": "latin", "method": "POST", "url": "/v1/embeddings", "body": "\xe9"}': "UTF-8",
    b'{"custom_id": "other", "method": "POST", "url": "/v1/chat/completions", "body": '
    b'{"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}}': "gpt-9",
}
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes(3_000)).decode()
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


def bodies(number: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The kind, the url and the body of one request of each kind."""
    text = f"Frage {number}: warum ist der Himmel blau? 空はなぜ青い 🌌 \\u2028 \u2028"
    picture = {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}
    system = {"role": "system", "content": "Be brief."}

    def chat(content: Any, **more: Any) -> tuple[str, dict[str, Any]]:
        messages = [system, {"role": "user", "content": content}]
        body = {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": 20, **more}
        return "/v1/chat/completions", body

    yield "chat", *chat(text, metadata={"job": "nightly"}, temperature=1, stop=None, user="u1")
    yield "tool", *chat(text, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    yield "schema", *chat(text, response_format=SCHEMA, seed=number)
    yield "picture", *chat([{"type": "text", "text": text}, picture])
    yield "vector", "/v1/embeddings", {"model": "vectors", "input": [text, "b"], "dimensions": 8}
    responses = {"model": "gpt-5-pro", "input": text, "max_output_tokens": 20}
    yield "response", "/v1/responses", responses
    yield "moderation", "/v1/moderations", {"model": "guard", "input": text}


def write_batch_file(path: Path, requests: int, kinds: Container[str] | None = None) -> list[str]:
    """Write a file with so many requests and BAD_LINES between them; return the custom_ids."""
    every = (
        (f"{kind}-{number}", url, body)
        for number in count()
        for kind, url, body in bodies(number)
        if kinds is None or kind in kinds
    )
    bad = iter(BAD_LINES)
    custom_ids = []
    with path.open("wb") as file:
        for index, (custom_id, url, body) in enumerate(islice(every, requests)):
            custom_ids.append(custom_id)
            values = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
            file.write(json.dumps(values, ensure_ascii=bool(index % 2)).encode() + b"\n")
            if index > 10 and (line := next(bad, None)):
                file.write(line + b"\n")
    return custom_ids


@contextmanager
def run_batch(url: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `fleet batch in.jsonl -o out.jsonl` in a folder; kill it at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "primarch_fleet", "batch", "in.jsonl", "-o", "out.jsonl", *options],
        cwd=folder,
        env=os.environ | {"FLEET_REDIS_URL": url, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, it has made them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        try:
            yield process
        finally:
            process.kill()
