"""Each parameter that a producer sends reaches the provider through the worker of its lane."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from primarch_fleet import CompletionRequest, Fleet, errors
from tests.acceptance.conftest import Up
from tests.support import parameters

HELLO = [{"role": "user", "content": "Parameters as json."}]
TOOLS = {"tools": parameters.CHAT["tools"]}
#: Parameters that mean nothing alone, with those that they need.
NEEDS = {"tool_choice": TOOLS, "parallel_tool_calls": TOOLS}
#: Parameters that gpt-4o-mini does not have, and those that need a stream.
SKIPPED = {"verbosity", "reasoning_effort", "stream", "stream_options"}


def requests(lane: str, **fields: Any) -> list[CompletionRequest]:
    """A request for each parameter of the SDK, and one for each that engines and providers have."""
    base: dict[str, Any] = {"model": "gpt-4o-mini", "messages": HELLO, "lane": lane, **fields}
    own = {name: value for name, value in parameters.CHAT.items() if name not in SKIPPED}
    return [
        *(CompletionRequest(**base, **NEEDS.get(name, {}), **{name: own[name]}) for name in own),
        *(
            CompletionRequest(**base, extra_body={name: value})
            for name, value in parameters.EXTRA_BODY.items()
        ),
    ]


def received(up: Up) -> list[dict[str, Any]]:
    """The bodies that the simulated provider got, those in files of batches included."""
    host = up.addresses["simulated provider"].removesuffix("/v1")
    with urllib.request.urlopen(f"{host}/simulator/requests", timeout=10) as response:
        calls = json.loads(response.read())
    bodies = []
    for call in calls:
        body = call["body"] or {}
        text = body.get("file") if call["path"].endswith("/files") else None
        lines = [json.loads(line)["body"] for line in (text or "").splitlines()]
        bodies += lines or [body]
    return [body for body in bodies if body.get("messages") == HELLO]


@pytest.mark.parametrize("lane", ["realtime", "batch"])
def test_each_parameter_reaches_the_provider(up: Up, lane: str) -> None:
    sent = requests(lane, tenant_id=f"parameters-{lane}", user_id="ann")
    with Fleet(up.url) as fleet:
        tickets = fleet.submit_many(sent)
        for ticket in tickets:
            assert fleet.result(ticket, timeout=60).receipt.lane == lane
    bodies = received(up)
    hashes = {body["safety_identifier"] for body in bodies if "user" not in body}
    assert "ann" not in hashes
    for request in sent:
        body = request.body()
        assert any(body.items() <= known.items() for known in bodies), body


def test_the_engine_s_parameters_are_accepted_and_others_are_refused_at_submit(up: Up) -> None:
    base: dict[str, Any] = {"model": "smollm2-135m", "messages": HELLO, "lane": "local"}
    with Fleet(up.url) as fleet:
        tickets = fleet.submit_many(
            CompletionRequest(**base, extra_body={name: value})
            for name, value in parameters.ENGINE.items()
        )
        for ticket in tickets:
            assert fleet.result(ticket, timeout=30).text
        with pytest.raises(errors.InvalidRequest, match=r"^thinking: "):
            fleet.submit(CompletionRequest(**base, extra_body={"thinking": {"type": "enabled"}}))
        with pytest.raises(errors.InvalidRequest, match=r"^store: "):
            fleet.submit(CompletionRequest(**base, store=True))
