"""Which provider runs the batches of a configuration, and what a provider's words mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.types import Batch

from config.fleet import FleetConfig
from config.provider import Provider
from primarch_fleet.errors import ConfigError
from scheduler.providers import PROVIDERS
from scheduler.providers.accounts import open_accounts
from scheduler.providers.azure import AzureBatches
from scheduler.providers.base import BatchFingerprint, BatchPage, ProviderBatch, find_batches
from scheduler.providers.errors import ProviderCallFailed
from scheduler.providers.openai import OpenAIBatches, provider_batch

HOUR = 3600.0


def entry(kind: str, **more: Any) -> dict[str, Any]:
    address = {"api_base": "os.environ/TEST_BASE"}
    return {"litellm_provider": kind, "api_key": "os.environ/TEST_KEY", **address, **more}


def config(kind: str, model: str = "chat", batch: bool = True, **policy: Any) -> FleetConfig:
    """One deployment at one provider."""
    os.environ |= {"TEST_KEY": "sk-of-the-test", "TEST_BASE": "https://there.example/v1"}
    deployment = {
        "id": "the-deployment",
        "model": "m",
        "provider": "somewhere",
        "upstream": "m",
        "kind": model,
        "price": {"input": "1", "output": "2"},
        "batch": batch,
    }
    return FleetConfig.model_validate(
        {
            "providers": {"somewhere": entry(kind)},
            "deployments": [deployment],
            "batch": {"max_bytes": 100_000_000, **policy},
        }
    )


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_provider_in_the_table_opens_by_its_name(kind: str) -> None:
    accounts = open_accounts(config(kind))
    assert {name: type(one) for name, one in accounts.items()} == {"somewhere": PROVIDERS[kind]}


def test_a_provider_without_batch_deployments_needs_no_account() -> None:
    assert open_accounts(config("mistral", batch=False)) == {}


def test_a_provider_without_batches_is_refused_with_those_that_have_them() -> None:
    words = "providers.somewhere: .*anthropic, azure, groq, hosted_vllm, openai, not at mistral"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config("mistral"))


@pytest.mark.parametrize("kind", ["anthropic", "azure", "groq"])
def test_a_deployment_that_its_providers_batches_do_not_serve_is_named(kind: str) -> None:
    words = "deployments.the-deployment: somewhere has no batches of /v1/embeddings"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config(kind, "embedding"))
    assert open_accounts(config("openai", "embedding"))


def test_a_policy_for_larger_batches_than_a_provider_takes_is_refused() -> None:
    words = "batch.max_bytes: 190,000,000 is above the limit of somewhere: 100,000,000"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config("groq", max_bytes=190_000_000))


def test_a_window_that_a_provider_does_not_know_is_refused() -> None:
    words = "batch.completion_window: somewhere supports 24h, not 7d"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config("openai", completion_window="7d"))
    assert open_accounts(config("groq", completion_window="7d"))


@pytest.mark.parametrize("kind", ["azure", "hosted_vllm"])
def test_an_address_that_only_the_operator_knows_is_asked_for(kind: str) -> None:
    wanted = config(kind)
    del os.environ["TEST_BASE"]
    with pytest.raises(ConfigError, match="somewhere: TEST_BASE is not set"):
        open_accounts(wanted)


def test_a_key_that_is_not_set_is_asked_for_by_its_name_and_its_providers() -> None:
    wanted = config("groq")
    del os.environ["TEST_KEY"]
    with pytest.raises(ConfigError, match="somewhere: TEST_KEY is not set"):
        open_accounts(wanted)


def client(kind: str, base: str = "", version: str = "") -> Any:
    os.environ |= {"TEST_KEY": "sk", "TEST_BASE": base, "AZURE_API_VERSION": version}
    account: Any = PROVIDERS[kind].from_config(Provider.model_validate(entry(kind)))
    return account._client


@pytest.mark.parametrize("path", ["", "/", "/openai", "/openai/v1/", "/openai/deployments/gpt"])
def test_azures_address_may_be_any_that_litellm_takes(path: str) -> None:
    host = "https://openai-ours.openai.azure.com"
    plain, dated = client("azure", host + path), client("azure", host + path, "2024-10-21")
    assert str(plain.base_url) == f"{host}/openai/v1/"
    assert not isinstance(plain, AsyncAzureOpenAI)
    assert str(dated.base_url) == f"{host}/openai/"
    assert isinstance(dated, AsyncAzureOpenAI)
    assert dated._api_version == "2024-10-21"


@pytest.mark.parametrize("version", ["v1", "latest", "preview"])
def test_azures_version_without_a_date_is_the_one_that_litellm_knows(version: str) -> None:
    assert str(client("azure", "https://ours", version).base_url) == "https://ours/openai/v1/"


def test_a_gateways_path_is_kept_and_groq_has_an_address_of_its_own() -> None:
    assert str(client("hosted_vllm", "http://gateway/v1").base_url) == "http://gateway/v1/"
    assert str(client("groq").base_url) == "https://api.groq.com/openai/v1/"


def test_no_client_repeats_a_call_by_itself() -> None:
    assert [client(kind, "https://ours").max_retries for kind in PROVIDERS] == [0] * len(PROVIDERS)


def batch(**fields: Any) -> ProviderBatch:
    """What the SDK reads, as ours."""
    known = {"id": "b", "created_at": 1, "status": "completed", "input_file_id": "in"}
    return provider_batch(Batch.construct(None, **{**known, **fields}))


def test_what_azure_leaves_empty_is_none() -> None:
    counts = {"total": None, "completed": None, "failed": None}
    empty = {"output_file_id": "", "error_file_id": "", "metadata": None, "errors": None}
    told = batch(endpoint=None, request_counts=counts, **empty)
    assert (told.files, told.metadata, told.faults) == ([], {}, ())
    assert batch(errors={"data": None}).faults == ()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("canceled", "cancelled"),
        ("canceling", "cancelling"),
        ("cancelled", "cancelled"),
        ("pre_schedule", "pre_schedule"),
    ],
)
def test_a_status_has_one_spelling(said: str, meant: str) -> None:
    assert batch(status=said).status == meant


class Listing(AzureBatches):
    """An account whose list has these batches, two a page, in this order."""

    def __init__(self, *batches: ProviderBatch) -> None:
        super().__init__(AsyncOpenAI(api_key="sk"))
        self._batches: Sequence[ProviderBatch] = batches
        self.pages = 0

    async def list(self, after: str | None) -> BatchPage:
        self.pages += 1
        start = 0
        if after is not None:
            start = [one.id for one in self._batches].index(after) + 1
        return BatchPage(list(self._batches[start : start + 2]), start + 2 < len(self._batches))


async def none(custom_id: str) -> bool:
    return False


SOUGHT = BatchFingerprint("intent", "ours", 6 * HOUR, 1, frozenset(), none)


def made(hours: float, file: str = "another") -> ProviderBatch:
    return ProviderBatch(f"made-{hours}", "completed", hours * HOUR, input_file_id=file)


@pytest.mark.anyio
async def test_a_search_ends_on_the_first_page_that_is_too_old_and_goes_back_in_time() -> None:
    listing = Listing(made(9), made(8, "ours"), made(3), made(2), made(1), made(0))
    (found,) = await find_batches(listing, SOUGHT)
    assert (found.id, listing.pages) == ("made-8", 2)


@pytest.mark.anyio
@pytest.mark.parametrize("times", [(0, 1, 2, 3), (0, 0, 1, 1), (0, 0, 0, 0)])
async def test_a_list_that_does_not_go_back_in_time_is_read_to_its_end(
    times: Sequence[int],
) -> None:
    others = [ProviderBatch(f"b{n}", "completed", hours * HOUR) for n, hours in enumerate(times)]
    (found,) = await find_batches(Listing(*others, made(8, "ours")), SOUGHT)
    assert found.id == "made-8"


@pytest.mark.anyio
async def test_a_list_that_gives_the_same_page_for_ever_has_been_read() -> None:
    class Stuck(OpenAIBatches):
        async def list(self, after: str | None) -> BatchPage:
            return BatchPage([made(8, "ours"), made(7)], True)

    (found,) = await find_batches(Stuck(AsyncOpenAI(api_key="sk")), SOUGHT)
    assert found.id == "made-8"


@pytest.mark.anyio
async def test_a_list_that_cannot_be_read_is_no_proof_of_absence() -> None:
    class Endless(OpenAIBatches):
        async def list(self, after: str | None) -> BatchPage:
            return BatchPage([ProviderBatch(f"after-{after}", "completed", 9 * HOUR)], True)

    with pytest.raises(ProviderCallFailed, match="more than 100 pages"):
        await find_batches(Endless(AsyncOpenAI(api_key="sk")), SOUGHT)


class Doubting(Listing):
    """An account that cannot know its running batches yet."""

    async def matches(self, remote: ProviderBatch, sought: BatchFingerprint) -> Any:
        return None if remote.status == "in_progress" else await super().matches(remote, sought)


@pytest.mark.anyio
async def test_a_batch_that_may_be_the_one_is_no_proof_of_absence() -> None:
    doubtful = ProviderBatch("doubtful", "in_progress", 9 * HOUR)
    with pytest.raises(ProviderCallFailed, match="such as doubtful"):
        await find_batches(Doubting(made(9), doubtful), SOUGHT)
    (found,) = await find_batches(Doubting(doubtful, made(8, "ours")), SOUGHT)
    assert found.id == "made-8"
