"""What producers' tests share: a catalogue, a request, its message and a worker's answer."""

import json
from typing import Any

import redis

from primarch_fleet import (
    Catalogue,
    CompletionRequest,
    Fleet,
    Rates,
)
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.contract import Completion
from tests.support.receipts import make_receipt

PRICE = Rates(input="1", output="2")


CATALOGUE = Catalogue(
    models={
        "m": Model(
            kind="chat",
            lanes={
                "realtime": Offer(queue="realtime", price=PRICE),
                "batch": Offer(queue="batch", price=PRICE),
            },
            list_price=PRICE,
        )
    },
    completion_window=86_400,
    max_request_bytes=2_000,
)


DONE = Completion(
    body={"choices": [{"message": {"content": "four"}}]},
    receipt=make_receipt(),
)


def request(text: str = "2+2?", **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(**{"model": "m", "lane": "realtime", "messages": messages} | fields)


def messages(server: redis.Redis, queue: str = "realtime") -> list[dict[str, Any]]:
    """What waits in a queue over all its priorities, oldest first."""
    steps = [queue, *(f"{queue}\x06\x16{step}" for step in (3, 6, 9))]
    return [json.loads(text) for step in steps for text in reversed(server.lrange(step, 0, -1))]


def finish(fleet: Fleet, task_id: str, outcome: Any = None, state: str = "SUCCESS") -> None:
    """What a worker does at the end of a task."""
    fleet.app.backend.store_result(task_id, outcome or DONE.model_dump(mode="json"), state)
