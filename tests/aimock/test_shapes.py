"""What goes over the wire, as our own simulated provider says it and as aimock does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.aimock.conftest import on_aimock
from workers.onebox.simulator import Profile, Simulator, VirtualClock

pytestmark = on_aimock

LINE = {
    "custom_id": "r-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
}
ORDER = {"endpoint": LINE["url"], "completion_window": "24h", "metadata": {"fleet_intent": "job1"}}
#: What OpenAI says and aimock leaves out.
MORE = {
    "file": {"expires_at"},
    "order": {"expires_at", "usage"},
    "batch": {"expires_at", "finalizing_at", "model", "usage"},
    "body": {"service_tier", "system_fingerprint"},
    "error": {"param"},
}


def test_our_simulator_agrees_with_aimock(aimock_url: str) -> None:
    clock = VirtualClock(time.time())
    with Simulator(Profile(), clock) as ours:
        told = _told(ours.url, lambda: clock.advance(60))
        for kind, theirs in _told(aimock_url, lambda: None).items():
            assert _types(theirs).items() <= _types(told[kind]).items(), kind
            assert set(_types(told[kind])) - set(_types(theirs)) <= MORE.get(kind, set()), kind


def _told(url: str, work: Callable[[], None]) -> dict[str, Any]:
    """One of each kind of answer; `work` gives the provider time."""
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer test-key"}) as http:
        content = {"file": ("a.jsonl", json.dumps(LINE) + "\n")}
        file = http.post("/files", data={"purpose": "batch"}, files=content).json()
        order = http.post("/batches", json={**ORDER, "input_file_id": file["id"]}).json()
        statuses = []
        while "completed" not in statuses:
            work()
            batch = http.get(f"/batches/{order['id']}").json()
            statuses.append(batch["status"])
        output = http.get(f"/files/{batch['output_file_id']}/content")
        result = json.loads(output.text)
        return {
            "file": file,
            "order": order,
            "batch": batch,
            "counts": batch["request_counts"],
            "list": http.get("/batches", params={"limit": 1}).json(),
            "files": http.get("/files", params={"purpose": "batch", "limit": 1}).json(),
            "result": result,
            "response": result["response"],
            "body": result["response"]["body"],
            "error": http.get("/batches/batch_none").json()["error"],
        }


def _types(told: dict[str, Any]) -> dict[str, type]:
    """The type of all that is said and is not null."""
    return {name: type(value) for name, value in told.items() if value is not None}
