"""The server: API keys, routes, control routes, concurrency and latency."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Model as ListedModel
from pydantic import ValidationError

from tests.integration.simulator.batch_file import create, lines
from tests.integration.simulator.conformance import conforms
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Simulator, SystemClock, VirtualClock
from workers.onebox.simulator.profile import Fault, Latency, Model

CHAT = {"model": "m", "messages": [{"role": "user", "content": "why?"}]}


@pytest.fixture
def controls(sim: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sim.url.removesuffix("/v1") + "/simulator") as plain:
        yield plain


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "key"])
def test_a_call_without_a_key_is_refused(sim: Simulator, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = httpx.get(f"{sim.url}/models", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_with_api_keys_only_those_keys_are_accepted(sim: Simulator) -> None:
    sim.profile = Profile(api_keys=frozenset({"good"}))
    with OpenAI(base_url=sim.url, api_key="good", max_retries=0) as good:
        assert good.models.list().data == []
    with OpenAI(base_url=sim.url, api_key="bad", max_retries=0) as bad:
        with pytest.raises(openai.AuthenticationError) as raised:
            bad.models.list()
        assert raised.value.code == "invalid_api_key"
        assert "bad" not in raised.value.message


def test_models_are_those_of_the_profile(http: httpx.Client) -> None:
    data = http.get("/models").json()
    assert data["object"] == "list"
    assert [conforms(ListedModel, item).id for item in data["data"]] == list(MODELS)


def test_without_models_any_name_is_a_free_model(client: OpenAI, sim: Simulator) -> None:
    sim.profile = Profile()
    assert client.embeddings.create(model="anything", input="a").model == "anything"
    invoice = sim.invoice()
    assert (invoice["total_nanousd"], invoice["requests"]) == (0, 1)
    assert invoice["by_model_nanousd"] == {"anything": 0}


@pytest.mark.parametrize("path", ["/v1/fun", "/", "/v1/models"])
def test_an_unknown_route_is_an_openai_error(http: httpx.Client, path: str) -> None:
    response = http.put(http.base_url.copy_with(path=path))
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"Invalid URL (PUT {path})"


def test_stats_count_calls_by_status_without_prompts(
    client: OpenAI, sim: Simulator, controls: httpx.Client
) -> None:
    client.embeddings.create(model="e", input="a secret")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="a secret")
    create(client, lines(1))
    stats = controls.get("/stats")
    assert stats.json() == sim.stats()
    assert sim.stats() == {
        "calls": {
            "embeddings": {"200": 1, "404": 1},
            "files.create": {"200": 1},
            "batches.create": {"200": 1},
        },
        "max_in_flight": 0,
        "batches_created": 1,
        "chunks": 0,
    }
    assert "secret" not in stats.text


def test_a_profile_can_be_replaced_over_http(client: OpenAI, controls: httpx.Client) -> None:
    profile = {"models": {"new": {"kind": "embedding"}}, "faults": [{"status": 500, "first": 1}]}
    assert controls.put("/profile", json=profile).status_code == 200
    with pytest.raises(openai.InternalServerError):
        client.models.list()
    assert [model.id for model in client.models.list()] == ["new"]


def test_an_invalid_profile_is_refused_and_the_old_one_kept(
    sim: Simulator, controls: httpx.Client
) -> None:
    before = sim.profile
    response = controls.put("/profile", json={"fautls": []})
    assert response.status_code == 400
    assert "fautls" in response.json()["error"]["message"]
    assert sim.profile is before


def test_the_virtual_clock_can_be_advanced_over_http(
    clock: VirtualClock, controls: httpx.Client
) -> None:
    assert controls.post("/clock", json={"advance": 2.5}).json() == {"now": 1_000_002.5}
    assert clock.now() == 1_000_002.5


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"advance": -1}', b'{"advance": "x"}'])
def test_the_virtual_clock_cannot_be_set_back_over_http(
    clock: VirtualClock, controls: httpx.Client, body: bytes
) -> None:
    assert controls.post("/clock", content=body).status_code == 400
    assert clock.now() == 1_000_000


def test_the_system_clock_cannot_be_advanced() -> None:
    with Simulator(clock=SystemClock()) as sim:
        origin = sim.url.removesuffix("/v1")
        response = httpx.post(f"{origin}/simulator/clock", json={"advance": 1})
        assert response.status_code == 409


def test_a_reset_keeps_only_the_profile_and_the_clock(
    client: OpenAI, sim: Simulator, clock: VirtualClock, controls: httpx.Client
) -> None:
    sim.profile = Profile(
        models=MODELS, faults=(Fault(endpoint="models.list", status=500, first=1),)
    )
    with pytest.raises(openai.InternalServerError):
        client.models.list()
    batch = create(client, lines(1))
    clock.advance(10)
    client.batches.retrieve(batch.id)
    assert controls.post("/reset").status_code == 200
    assert sim.invoice()["requests"] == 0
    assert sim.stats() == {"calls": {}, "max_in_flight": 0, "batches_created": 0, "chunks": 0}
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(batch.id)
    assert client.files.list().data == []
    assert clock.now() == 1_000_010
    with pytest.raises(openai.InternalServerError):
        client.models.list()
    assert create(client, lines(1)).id != batch.id


def first_file(start: float) -> str:
    """The id of the first file of a simulator started at this time."""
    with (
        Simulator(clock=VirtualClock(start)) as sim,
        OpenAI(base_url=sim.url, api_key="key", max_retries=0) as client,
    ):
        return client.files.create(file=("a.jsonl", b""), purpose="batch").id


def test_ids_are_reproducible_but_not_reused_after_a_restart() -> None:
    assert first_file(1.0) == first_file(1.0)
    assert first_file(1.0) != first_file(2.0)


class Gate(VirtualClock):
    """A clock on which every sleep ends as soon as `number` sleeps have started."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.slept: list[float] = []
        self._number = number
        self._open = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) >= self._number:
            self._open.set()
        await self._open.wait()


def test_concurrent_calls_are_served_together_and_counted() -> None:
    gate = Gate(100)

    async def ask(url: str, number: int) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": "Bearer key"}
        async with httpx.AsyncClient(limits=limits, headers=headers, timeout=60) as http:
            calls = [http.post(f"{url}/chat/completions", json=CHAT) for _ in range(number)]
            return [response.status_code for response in await asyncio.gather(*calls)]

    with Simulator(Profile(latency=Latency(mean=1)), gate) as sim:
        assert asyncio.run(ask(sim.url, 100)) == [200] * 100
        assert gate.slept == [1.0] * 100
        assert asyncio.run(ask(sim.url, 1)) == [200]
        assert sim.stats()["max_in_flight"] == 100


def test_chunks_of_a_stream_are_counted_until_the_caller_disconnects() -> None:
    profile = Profile(latency=Latency(time_per_token=0.05))
    headers = {"Authorization": "Bearer key"}
    with Simulator(profile) as sim, httpx.Client(headers=headers) as http:
        whole = http.post(f"{sim.url}/chat/completions", json={**CHAT, "stream": True})
        count = whole.text.count("data: ")
        assert sim.stats()["chunks"] == count > 3
        with http.stream("POST", f"{sim.url}/chat/completions", json={**CHAT, "stream": True}) as r:
            next(r.iter_bytes())
        while sim.stats()["calls"]["chat.completions"] != {"200": 1, "dropped": 1}:
            pass
        assert count < sim.stats()["chunks"] < 2 * count


def test_a_call_whose_caller_disconnects_counts_as_dropped() -> None:
    with Simulator(Profile(latency=Latency(mean=0.2))) as sim:
        headers = {"Authorization": "Bearer key"}
        with (
            httpx.Client(headers=headers, timeout=0.05) as http,
            pytest.raises(httpx.TimeoutException),
        ):
            http.post(f"{sim.url}/chat/completions", json=CHAT)
        while not (calls := sim.stats()["calls"]):
            pass
        assert calls == {"chat.completions": {"dropped": 1}}


def sleeps(profile: Profile, *texts: str, **changes: Any) -> list[float]:
    """The sleeps of a simulator that answers these questions one after the other."""
    clock = Gate(0)
    headers = {"Authorization": "Bearer key"}
    with Simulator(profile, clock) as sim, httpx.Client(headers=headers) as http:
        for text in texts:
            body = {**CHAT, "messages": [{"role": "user", "content": text}], **changes}
            response = http.post(f"{sim.url}/chat/completions", json=body)
            assert response.status_code == 200
    return clock.slept


def test_latency_has_a_mean_a_seeded_jitter_and_a_time_per_token() -> None:
    texts = [str(number) for number in range(50)]
    jittery = Profile(latency=Latency(mean=2, jitter=0.5))
    first = sleeps(jittery, *texts)
    assert first == sleeps(jittery, *texts)
    assert first != sleeps(jittery.model_copy(update={"seed": 1}), *texts)
    assert all(1.5 <= wait <= 2.5 for wait in first)
    assert max(first) - min(first) > 0.5
    # "Simulated answer to: why?" is 25 bytes, 7 tokens.
    assert sleeps(Profile(latency=Latency(mean=2, time_per_token=0.1)), "why?") == [2.7]


def test_a_model_can_have_its_own_latency() -> None:
    models = {"m": Model(latency=Latency(mean=3)), "n": Model()}
    profile = Profile(models=models, latency=Latency(mean=1))
    assert sleeps(profile, "why?") == [3]
    assert sleeps(profile, "why?", model="n") == [1]


def test_a_stream_starts_after_the_mean_and_spreads_the_time_per_token() -> None:
    profile = Profile(latency=Latency(mean=2, time_per_token=0.1))
    first, *rest = sleeps(profile, "why?", stream=True)
    assert first == 2
    assert len(rest) > 3
    assert sum(rest) == pytest.approx(0.7)


def test_a_simulator_stops_with_a_call_in_flight() -> None:
    gate = Gate(2)  # the only call sleeps forever
    failed: list[Exception] = []

    def ask(url: str) -> None:
        try:
            httpx.post(
                f"{url}/chat/completions", json=CHAT, headers={"Authorization": "Bearer key"}
            )
        except httpx.HTTPError as error:
            failed.append(error)

    with Simulator(Profile(latency=Latency(mean=60)), gate) as sim:
        caller = threading.Thread(target=ask, args=(sim.url,))
        caller.start()
        while not gate.slept:
            sim.stats()
    caller.join(10)
    assert len(failed) == 1
    assert sim.invoice()["requests"] == 0


def test_a_port_in_use_is_an_error() -> None:
    with Simulator() as sim:
        port = int(sim.url.removesuffix("/v1").rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            Simulator(port=port).__enter__()


def test_a_virtual_clock_moves_only_forward() -> None:
    clock = VirtualClock(5)
    asyncio.run(clock.sleep(100))
    assert clock.now() == 5
    with pytest.raises(ValueError, match="must not be negative"):
        clock.advance(-1)


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"first": 1},
        {"status": 200},
        {"status": 0},
        {"write": "missing", "status": 500},
        {"scope": "line"},
        {"scope": "line", "status": 500, "drop": "before_response"},
        {"scope": "line", "status": 500, "delay": 1},
        {"scope": "line", "status": 500, "retry_after": 1},
        {"status": 500, "endpoint": "chat"},
        {"status": 500, "probability": 1.1},
        {"status": 500, "first": 0},
    ],
)
def test_a_rule_without_a_valid_effect_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(fault)
