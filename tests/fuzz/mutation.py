"""Mutations of real messages and commands."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.encoding import encoded, to_json
from tests.fuzz.values import DEEP, NAMES, Raw, odd

#: How many changes a message gets: mostly one, so that the rest of it is right.
CHANGES = (1, 1, 1, 1, 2, 3)


def mutated(message: dict[str, Any], task_id: str, source: random.Random) -> bytes:
    """A message with its own id and some things changed."""
    message = copy.deepcopy(message)
    message["headers"]["id"] = message["properties"]["correlation_id"] = task_id
    body = json.loads(base64.b64decode(message["body"]))
    tree = {"message": message, "body": body}
    for _ in range(source.choice(CHANGES)):
        _change(tree, source)
    if isinstance(tree["message"], dict) and source.random() < 0.95:
        tree["message"].setdefault("body", None)
        if tree["message"]["body"] == message["body"]:
            tree["message"]["body"] = encoded(tree["body"])
    return _damaged(to_json(tree["message"]).encode(), source)


def _change(tree: dict[str, Any], source: random.Random) -> None:
    """Replace, remove or add something, anywhere."""
    container, key = source.choice([*_places(tree)])
    if source.random() < 0.1 and isinstance(container, dict) and container is not tree:
        del container[key]
    elif source.random() < 0.3 and isinstance(container, dict) and container is not tree:
        container[source.choice(NAMES)] = odd(source)
    else:
        container[key] = odd(source)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """The places of all values within a value."""
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _damaged(text: bytes, source: random.Random) -> bytes:
    """The text, one time in twenty damaged."""
    if source.random() > 0.05:
        return text
    at = source.randrange(len(text) + 1)
    damages: list[Callable[[], bytes]] = [
        lambda: text[:at],
        lambda: text[:at] + b"\xff\xfe" + text[at:],
        lambda: text[:at] + bytes([source.randrange(256)]) + text[at + 1 :],
        lambda: text + text,
        DEEP.encode,
        lambda: source.choice((b"", b"17", b'"text"', b"null", b"[]", b"{}", b"not json")),
    ]
    return source.choice(damages)() or b" "


#: Commands of Celery with arguments that are right, or that its workers refuse. None of them stops
#: a worker, its queues or its pool by what it means.
COMMANDS: tuple[dict[str, Any], ...] = (
    {"method": "ping", "arguments": {}},
    {"method": "revoke", "arguments": {"task_id": ["nobody"], "terminate": True}},
    {"method": "revoke_by_stamped_headers", "arguments": {"headers": {"nobody": "x"}}},
    {"method": "rate_limit", "arguments": {"task_name": "unknown", "rate_limit": "1/s"}},
    {"method": "time_limit", "arguments": {"task_name": "unknown", "soft": 1, "hard": 2}},
    {"method": "add_consumer", "arguments": {"queue": 5, "exchange": None}},
    {"method": "cancel_consumer", "arguments": {"queue": "unknown"}},
    {"method": "pool_grow", "arguments": {"n": "1"}},
    {"method": "autoscale", "arguments": {"max": "x", "min": 1}},
    {"method": "hello", "arguments": {"from_node": "other", "revoked": {"nobody": 1.0}}},
    {"method": "query_task", "arguments": {"ids": ["nobody"]}},
    {"method": "election", "arguments": {"id": "x", "topic": "y", "action": "z"}},
    *({"method": name} for name in ("stats", "report", "active", "scheduled", "reserved")),
    *({"method": name} for name in ("registered", "conf", "clock", "active_queues", "unknown")),
)
#: Odd values of these would be right, and change what the worker serves.
FIXED = {"queue", "n", "max", "min"}


def mutated_command(source: random.Random) -> bytes:
    """A control command with some things changed."""
    command = copy.deepcopy(source.choice(COMMANDS)) | {"destination": None}
    if source.random() < 0.3:
        command["reply_to"] = {"exchange": "reply", "routing_key": "nobody"}
    places = [place for place in _places(command) if place[1] not in FIXED]
    container, key = source.choice(places)
    container[key] = odd(source)
    if container is command and key == "method" and command["method"] == "x":
        command["method"] = ["ping"]
    message: dict[str, Any] = {
        "body": encoded(command),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 0},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "x",
        },
    }
    if source.random() < 0.4:
        container, key = source.choice([*_places(message)])
        container[key] = odd(source)
    value: Any = message if source.random() < 0.95 else odd(source)
    return _damaged(to_json(value if value != "" else Raw("x")).encode(), source)
