"""Builds input files for batches, and reads their results."""

import json
from collections.abc import Sequence
from typing import Any, Final

from openai import OpenAI
from openai.types import Batch

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"


def line(custom_id: str, text: str = "hello", **changes: Any) -> dict[str, Any]:
    """One chat request; `changes` replace keys of the line."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def lines(number: int) -> list[dict[str, Any]]:
    """`number` chat requests with the custom_ids r0, r1, ..."""
    return [line(f"r{index}", f"question {index}") for index in range(number)]


def upload(client: OpenAI, content: bytes | Sequence[dict[str, Any]]) -> str:
    """Upload an input file and return its id."""
    if not isinstance(content, bytes):
        content = b"".join(json.dumps(item).encode() + b"\n" for item in content)
    return client.files.create(file=("input.jsonl", content), purpose="batch").id


def create(client: OpenAI, content: bytes | Sequence[dict[str, Any]], **changes: Any) -> Batch:
    """Upload an input file and create its batch."""
    request: dict[str, Any] = {
        "input_file_id": upload(client, content),
        "endpoint": CHAT,
        "completion_window": "24h",
        **changes,
    }
    return client.batches.create(**request)


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The records of a result file; none without a file."""
    if not file_id:
        return []
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def ids(records: Sequence[dict[str, Any]]) -> list[str]:
    """The custom_ids in file order."""
    return [record["custom_id"] for record in records]
