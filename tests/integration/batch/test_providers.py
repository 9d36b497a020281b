"""The batch lane at each provider: the real SDK's client, over HTTP, and its simulated API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import errors
from scheduler.providers.accounts import open_accounts
from scheduler.providers.base import BatchFingerprint, find_batches
from scheduler.providers.errors import ProviderRefused
from tasks.failure_reasons import Reason
from tasks.receipts import RequestMetadata
from tests.support.batch_accounts import CLASSIC, KEY, account, dialect, entry
from tests.support.batch_fixture import Dialect, OpenBench, chat, fleet_app, open_bench, profile
from tests.support.mortal_store import Killed
from workers.onebox.simulator.azure import AzureApp
from workers.onebox.simulator.profile import Fault, Profile
from workers.onebox.simulator.server import Simulator
from workers.realtime.server import RealtimeServer

__all__ = ["fleet_app", "open_bench"]

pytestmark = pytest.mark.anyio

FULL = "The number of enqueued tokens has surpassed the configured limit of 30K for the deployment."


DIALECTS = [
    pytest.param(dialect("openai"), id="openai"),
    pytest.param(dialect("azure"), id="azure"),
    pytest.param(dialect("azure", CLASSIC), id="azure-classic"),
    pytest.param(dialect("groq"), id="groq"),
    pytest.param(dialect("hosted_vllm"), id="hosted_vllm"),
]
GEMINI = pytest.param(dialect("gemini"), id="gemini")
ALL = [*DIALECTS, pytest.param(dialect("anthropic"), id="anthropic"), GEMINI]
AZURE = [dialect("azure"), dialect("azure", CLASSIC)]


@pytest.mark.parametrize("kind", DIALECTS)
async def test_a_batch_is_submitted_and_its_responses_are_delivered(
    opened: OpenBench, kind: Dialect
) -> None:
    refused = Fault(scope="line", contains="question 3", status=400, code="content_filter")
    async with opened(profile(refused), dialect=kind) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.until_idle()
        for n, answer in enumerate(await b.completions(results[:3])):
            assert f"question {n}" in answer.text
            assert (answer.receipt.lane, answer.receipt.attempts) == ("batch", 1)
        assert isinstance(await b.outcome(results[3]), errors.ContentPolicyViolation)
        assert b.batches_created() == 1
        assert not list(b.folder.iterdir())


@pytest.mark.parametrize("kind", ALL)
async def test_a_batch_created_without_an_answer_is_found_and_adopted(
    opened: OpenBench, kind: Dialect
) -> None:
    lost = Fault(endpoint="batches.create", drop="after_commit", times=1)
    async with opened(profile(lost), dialect=kind) as b:
        results = await b.send(chat("hello"))
        await b.until_idle()
        assert (await b.completion(results[0])).receipt.attempts == 1
        assert b.batches_created() == 1


@pytest.mark.parametrize("kind", ALL)
async def test_a_crash_at_creation_leads_to_one_batch(opened: OpenBench, kind: Dialect) -> None:
    async with opened(dialect=kind) as b:
        results = await b.send(chat("hello"))
        b.scheduler.store.dies_before = "SUBMITTED"
        with pytest.raises(Killed):
            await b.turn()
        b.scheduler = b.new_scheduler()
        await b.until_idle()
        assert (await b.completion(results[0])).receipt.attempts == 1
        assert b.batches_created() == 1


@pytest.mark.parametrize("kind", AZURE)
async def test_an_azure_batch_without_errors_has_an_empty_error_file(
    opened: OpenBench, kind: Dialect
) -> None:
    async with opened(dialect=kind) as b:
        results = await b.send(chat("hello"))
        await b.turn()
        (live,) = await b.batches()
        assert (live.files, live.metadata) == ([], {})
        await b.until_idle()
        (ended,) = await b.batches()
        _, errors_file = ended.files
        target = b.folder / "errors.jsonl"
        await b.scheduler.provider.download(errors_file, target)
        assert target.read_bytes() == b""
        choice = (await b.completion(results[0])).body["choices"][0]
        assert "content_filter_results" in choice


@pytest.mark.parametrize("kind", AZURE)
async def test_an_azure_refusal_for_too_many_tokens_halves_the_batch(
    opened: OpenBench, kind: Dialect
) -> None:
    full = Fault(
        endpoint="batches.create", status=400, code="token_limit_exceeded", message=FULL, times=1
    )
    async with opened(profile(full), dialect=kind) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.until_idle()
        assert len(await b.completions(results)) == 4
        assert sorted(size for _, size, _ in b.scheduler.jobs) == [2, 2, 4]
        assert b.batches_created() == 2


@pytest.mark.parametrize(
    ("unknown", "processing"),
    [((), 30), ([Fault(endpoint="files.retrieve", status=404, times=1)], 0)],
)
async def test_an_azure_batch_is_created_after_its_file_is_processed(
    opened: OpenBench, unknown: Sequence[Fault], processing: float
) -> None:
    async with opened(profile(*unknown), dialect=dialect("azure", processing=processing)) as b:
        results = await b.send(chat("hello"))
        await b.turn()
        assert (b.states(), b.batches_created()) == (["UPLOADED"], 0)
        await b.until_idle()
        assert (await b.completion(results[0])).receipt.attempts == 1
        assert b.simulator.stats()["calls"]["files.create"] == {"200": 1}


async def test_azures_status_canceled_is_read_as_cancelled(opened: OpenBench) -> None:
    spellings = {"cancelled": "canceled", "cancelling": "canceling"}
    async with opened(
        profile(in_progress=100, status_names=spellings), dialect=dialect("azure")
    ) as b:
        results = await b.send(chat("hello"))
        await b.turn()
        (live,) = await b.batches()
        await b.scheduler.provider.cancel(live.id)
        b.clock.advance(5)
        assert (await b.scheduler.provider.retrieve(live.id)).status == "cancelled"
        await b.until_idle()
        assert (await b.completion(results[0])).receipt.attempts == 2


async def test_an_azure_batch_is_recognized_by_its_input_file(opened: OpenBench) -> None:
    async with opened(dialect=dialect("azure")) as b:
        await b.send(chat("one"), chat("two", "gpt-4o"))
        await b.turn()
        first, second = await b.batches()
        fingerprint = BatchFingerprint(
            "no intent", first.input_file_id, b.now(), 1, frozenset(), _has
        )
        found = await find_batches(b.scheduler.provider, fingerprint)
        assert [batch.id for batch in found] == [first.id]
        assert first.input_file_id != second.input_file_id


async def _has(custom_id: str) -> bool:
    raise AssertionError("the file is enough")


async def test_a_wrong_azure_key_is_an_account_error(tmp_path: Path) -> None:
    file = tmp_path / "input.jsonl"
    file.write_bytes(b"{}\n")
    with Simulator(Profile(api_keys=frozenset({"another"})), app=AzureApp) as simulator:
        for version in ("v1", CLASSIC):
            provider = account("azure", version, simulator.url)
            with pytest.raises(ProviderRefused) as refused:
                await provider.upload(file, "input.jsonl")
            assert (refused.value.status, refused.value.fault.reason) == (401, Reason.CREDENTIALS)
            await provider.close()


async def test_the_simulated_azure_refuses_what_azure_does(tmp_path: Path) -> None:
    """What AzureBatches must not do, so that the tests above prove something."""
    with Simulator(app=AzureApp) as simulator:
        root = simulator.url.removesuffix("/v1") + "/openai"
        async with httpx.AsyncClient(headers={"api-key": KEY}) as client:
            assert (await client.get(f"{root}/batches")).status_code == 404
            dated = {"api-version": CLASSIC}
            assert (await client.get(f"{root}/batches", params=dated)).status_code == 200
            assert (await client.get(f"{root}/v1/batches")).status_code == 200
            create = {"input_file_id": "file-1", "metadata": {"fleet_intent": "1"}}
            answer = await client.post(f"{root}/v1/batches", json=create)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")
            week = {"purpose": "batch", "expires_after[seconds]": "604800"}
            files = {"file": ("input.jsonl", b"{}")}
            answer = await client.post(f"{root}/v1/files", data=week, files=files)
            assert answer.status_code == 400


def azure_deployment(name: str, **more: Any) -> dict[str, Any]:
    price = {"input": "2.50", "output": "10.00"}
    return {"id": name, "model": "m", "provider": "azure", "upstream": name, "price": price, **more}


@pytest.mark.parametrize("version", ["v1", CLASSIC])
async def test_one_azure_entry_serves_the_realtime_lane_too(
    store: redis.Redis, valkey_url: str, version: str
) -> None:
    """A batch deployment cannot serve chat: `order` puts it after the other deployment."""
    with Simulator(profile(), app=AzureApp) as simulator:
        await account("azure", version, simulator.url).close()
        deployments = [
            azure_deployment("gpt-4o-mini", batch=True, params={"order": 2}),
            azure_deployment("gpt-4o", params={"order": 1}),
        ]
        config = FleetConfig.model_validate(
            {"providers": {"azure": entry("azure")}, "deployments": deployments}
        )
        assert config.batch_deployment("m").upstream == "gpt-4o-mini"
        (batches,) = open_accounts(config).values()
        await batches.close()
        server = RealtimeServer(config, valkey_url)
        metadata = RequestMetadata(
            task_id="task", trace_id="trace", reason="asked for", queue_wait=0.1
        )
        try:
            answers = [await server.serve(chat("hello", "m"), metadata) for _ in range(6)]
        finally:
            await server.close()
        assert {answer.receipt.deployment for answer in answers} == {"gpt-4o"}
        assert "hello" in answers[0].text
