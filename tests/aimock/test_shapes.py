"""The wire format of our simulated provider, compared with aimock's."""

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
CREATE = {"endpoint": LINE["url"], "completion_window": "24h", "metadata": {"fleet_intent": "job1"}}
#: Fields that OpenAI sends and aimock leaves out.
EXTRA = {
    "file": {"expires_at"},
    "created": {"expires_at", "usage"},
    "batch": {"expires_at", "finalizing_at", "model", "usage"},
    "body": {"service_tier", "system_fingerprint"},
    "error": {"param"},
}


def test_our_simulator_agrees_with_aimock(aimock_url: str) -> None:
    clock = VirtualClock(time.time())
    with Simulator(Profile(), clock) as ours:
        answers = _answers(ours.url, lambda: clock.advance(60))
        for kind, theirs in _answers(aimock_url, lambda: None).items():
            assert _types(theirs).items() <= _types(answers[kind]).items(), kind
            assert set(_types(answers[kind])) - set(_types(theirs)) <= EXTRA.get(kind, set()), kind


def _answers(url: str, wait: Callable[[], None]) -> dict[str, Any]:
    """One answer of each kind; `wait` lets the batch proceed."""
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer test-key"}) as http:
        content = {"file": ("a.jsonl", json.dumps(LINE) + "\n")}
        file = http.post("/files", data={"purpose": "batch"}, files=content).json()
        created = http.post("/batches", json={**CREATE, "input_file_id": file["id"]}).json()
        statuses = []
        while "completed" not in statuses:
            wait()
            batch = http.get(f"/batches/{created['id']}").json()
            statuses.append(batch["status"])
        output = http.get(f"/files/{batch['output_file_id']}/content")
        result = json.loads(output.text)
        return {
            "file": file,
            "created": created,
            "batch": batch,
            "counts": batch["request_counts"],
            "list": http.get("/batches", params={"limit": 1}).json(),
            "files": http.get("/files", params={"purpose": "batch", "limit": 1}).json(),
            "result": result,
            "response": result["response"],
            "body": result["response"]["body"],
            "error": http.get("/batches/batch_none").json()["error"],
        }


def _types(answer: dict[str, Any]) -> dict[str, type]:
    """The types of all fields that are not null."""
    return {name: type(value) for name, value in answer.items() if value is not None}
