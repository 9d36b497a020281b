"""A request that an engine refuses for its length moves to a lane that takes it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from celery import chain, chord

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import ContextWindowExceeded
from primarch_fleet.lane_health import heartbeat_key
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.server import Simulator

MODEL, QUEUE, BODY = "gpt-4o-mini", "local.gpt-4o-mini", "chord-bodies"
PATIENCE = 60.0
#: The simulated engine counts words: 400 of them are too many for it. By estimate, the text has
#: only 200 tokens, so `auto` takes it for short enough.
LONG = "a " * 400


def configuration(folder: Path) -> Path:
    """The shipped configuration, with a short engine for gpt-4o-mini."""
    data = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    [engine] = data["engines"]
    data["engines"] = [engine | {"model": MODEL, "quality": 1.0, "max_model_len": 300}]
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def question(text: str, **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(model=MODEL, messages=messages, max_tokens=20, **fields)


def chord_values(fleet: Fleet, *requests: CompletionRequest) -> list[Any]:
    """What the body of a chord of these requests gets, which is published once."""
    parts = [
        fleet.app.signature("local.complete", args=[request.to_wire()], queue=QUEUE)
        for request in requests
    ]
    chord(parts, fleet.app.signature("test.body", queue=BODY), app=fleet.app).apply_async()
    with fleet.app.connection_for_read() as connection, connection.SimpleQueue(BODY) as bodies:
        message = bodies.get(timeout=PATIENCE)
        message.ack()
        with pytest.raises(bodies.Empty):
            bodies.get(block=False)
    (values,), *_ = message.payload
    assert isinstance(values, list)
    return values


def test_a_request_that_an_engine_finds_too_long_is_answered_where_it_fits(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    with Simulator() as simulator, ExitStack() as stack:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(configuration(tmp_path)),
            "FLEET_DATA_DIR": str(tmp_path),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        for app in ("workers.local.app", "workers.realtime.app"):
            stack.enter_context(start_worker(app.replace(".", "-"), app=app, env=env, wait=False))
        fleet = stack.enter_context(Fleet(valkey_url))
        ready = [heartbeat_key(queue) for queue in (QUEUE, "realtime")]
        assert eventually(lambda: store.exists(*ready) == len(ready), PATIENCE)

        # By estimate it fits: the engine finds out that it does not.
        ticket = fleet.submit(question(LONG))
        assert ticket.lane == "local"
        receipt = fleet.result(ticket, PATIENCE).receipt
        assert receipt.lane == "realtime"
        assert receipt.reason == "hosted here; moved: local is too short"
        assert receipt.trace_id == ticket.id

        # A reader of its stream gets the other lane's chunks.
        ticket = fleet.submit(question(LONG, stream=True))
        text = "".join(chunk.text for chunk in fleet.stream(ticket, timeout=PATIENCE))
        assert text == fleet.result(ticket, PATIENCE).text != ""

        # By estimate it does not fit.
        ticket = fleet.submit(question("word " * 400))
        assert (ticket.lane, ticket.reason) == (
            "realtime",
            "no cheaper lane fits; local is too short: about 538 tokens, it takes 300",
        )

        # The producer named the lane: it gets the refusal.
        ticket = fleet.submit(question(LONG, lane="local"))
        with pytest.raises(ContextWindowExceeded, match="300"):
            fleet.result(ticket, PATIENCE)

        # A part of a chord has its refusal as a value, if it wants that.
        values = chord_values(
            fleet,
            *(
                question(text, lane="local", return_exceptions=True)
                for text in ("one", LONG, "two")
            ),
        )
        assert values[1]["error"]["code"] == "context_window_exceeded"
        assert [value["receipt"]["lane"] for value in (values[0], values[2])] == ["local"] * 2

        # Its links and its chain follow it.
        moving, echo = (
            fleet.app.signature("local.complete", args=[question(text).to_wire()], queue=QUEUE)
            for text in (LONG, "x")
        )
        echo.set(immutable=True)
        last: Any = chain(moving, echo, app=fleet.app).apply_async()
        assert last.get(timeout=PATIENCE)["receipt"]["lane"] == "local"
        assert last.parent.get(timeout=PATIENCE)["receipt"]["lane"] == "realtime"
        assert fleet.budget("default").month.reserved == 0
