"""The accounts of a configuration, and how providers' batches and lists are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.types import Batch

from config.contradictions import contradictions
from config.endpoints import BATCH_ENDPOINTS
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
    """A configuration with one deployment at one provider."""
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
def test_every_provider_opens_by_its_litellm_name(kind: str) -> None:
    accounts = open_accounts(config(kind, max_bytes=20_000_000))
    assert {name: type(account) for name, account in accounts.items()} == {
        "somewhere": PROVIDERS[kind]
    }


def test_a_provider_without_batch_deployments_needs_no_account() -> None:
    assert open_accounts(config("mistral", batch=False)) == {}


def test_each_provider_with_batches_has_an_adapter() -> None:
    assert PROVIDERS.keys() == BATCH_ENDPOINTS.keys()


def test_a_provider_without_batches_is_refused_with_a_list_of_those_that_have_them() -> None:
    ((place, words),) = contradictions(config("mistral"))
    assert place == ("deployments", 0, "batch")
    assert words == (
        "mistral has no batches; remove it, or use a provider of: "
        "anthropic, azure, gemini, groq, hosted_vllm, openai"
    )


@pytest.mark.parametrize("kind", ["anthropic", "azure", "gemini", "groq"])
def test_a_deployment_that_batches_do_not_serve_is_refused(kind: str) -> None:
    ((_, words),) = contradictions(config(kind, "embedding"))
    assert words.startswith(f"{kind} has no batches for embedding; ")
    assert list(contradictions(config("openai", "embedding"))) == []


def test_an_azure_account_without_all_of_entra_ids_parameters_is_refused_by_name() -> None:
    os.environ["TEST_TOKEN"] = "secret"
    params = {"api_base": "https://there.example", "client_secret": "os.environ/TEST_TOKEN"}
    account = Provider.model_validate({"litellm_provider": "azure", "litellm_params": params})
    with pytest.raises(ConfigError, match="tenant_id, client_id: missing; Entra ID"):
        AzureBatches.from_config(account)


def test_a_gateway_of_your_own_needs_no_key() -> None:
    params = {"api_base": "http://gateway.example/v1"}
    served = {"id": "d", "model": "m", "batch": True}
    inline = {**served, "litellm_params": {"model": "hosted_vllm/m", **params}}
    config = FleetConfig.model_validate(
        {"deployments": [inline], "batch": {"max_bytes": 100_000_000}}
    )
    [account] = open_accounts(config).values()
    assert str(account._client.base_url) == "http://gateway.example/v1/"  # type: ignore[attr-defined]


def test_a_policy_above_a_providers_limit_is_refused() -> None:
    words = "batch.max_bytes: 190,000,000 is above the limit of somewhere: 100,000,000"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config("groq", max_bytes=190_000_000))


def test_a_window_that_a_provider_does_not_support_is_refused() -> None:
    words = "batch.completion_window: somewhere supports 24h, not 7d"
    with pytest.raises(ConfigError, match=words):
        open_accounts(config("openai", completion_window="7d"))
    assert open_accounts(config("groq", completion_window="7d"))


@pytest.mark.parametrize("kind", ["azure", "hosted_vllm"])
def test_a_missing_address_is_an_error_that_names_its_variable(kind: str) -> None:
    wanted = config(kind)
    del os.environ["TEST_BASE"]
    with pytest.raises(ConfigError, match="somewhere: TEST_BASE is not set"):
        open_accounts(wanted)


def test_a_missing_key_is_an_error_that_names_its_variable_and_provider() -> None:
    wanted = config("groq")
    del os.environ["TEST_KEY"]
    with pytest.raises(ConfigError, match="somewhere: TEST_KEY is not set"):
        open_accounts(wanted)


def client(kind: str, base: str = "", version: str = "") -> Any:
    os.environ |= {"TEST_KEY": "sk", "TEST_BASE": base, "AZURE_API_VERSION": version}
    account: Any = PROVIDERS[kind].from_config(Provider.model_validate(entry(kind)))
    return account._client


@pytest.mark.parametrize("path", ["", "/", "/openai", "/openai/v1/", "/openai/deployments/gpt"])
def test_an_azure_address_may_have_any_path_that_litellm_accepts(path: str) -> None:
    host = "https://openai-ours.openai.azure.com"
    plain, dated = client("azure", host + path), client("azure", host + path, "2024-10-21")
    assert str(plain.base_url) == f"{host}/openai/v1/"
    assert not isinstance(plain, AsyncAzureOpenAI)
    assert str(dated.base_url) == f"{host}/openai/"
    assert isinstance(dated, AsyncAzureOpenAI)
    assert dated._api_version == "2024-10-21"


@pytest.mark.parametrize("version", ["v1", "latest", "preview"])
def test_azures_undated_versions_select_the_v1_api(version: str) -> None:
    assert str(client("azure", "https://ours", version).base_url) == "https://ours/openai/v1/"


def test_a_gateways_path_is_kept_and_groq_has_a_default_address() -> None:
    assert str(client("hosted_vllm", "http://gateway/v1").base_url) == "http://gateway/v1/"
    assert str(client("groq").base_url) == "https://api.groq.com/openai/v1/"


def test_no_client_retries_by_itself() -> None:
    with_sdk = PROVIDERS.keys() - {"gemini"}
    assert {client(kind, "https://ours").max_retries for kind in with_sdk} == {0}


def batch(**fields: Any) -> ProviderBatch:
    """Convert a batch of the SDK."""
    required = {"id": "b", "created_at": 1, "status": "completed", "input_file_id": "in"}
    return provider_batch(Batch.construct(None, **{**required, **fields}))


def test_empty_fields_of_azure_are_read_as_none() -> None:
    counts = {"total": None, "completed": None, "failed": None}
    empty = {"output_file_id": "", "error_file_id": "", "metadata": None, "errors": None}
    converted = batch(endpoint=None, request_counts=counts, **empty)
    assert (converted.files, converted.metadata, converted.faults) == ([], {}, ())
    assert batch(errors={"data": None}).faults == ()


@pytest.mark.parametrize(
    ("spelling", "status"),
    [
        ("canceled", "cancelled"),
        ("canceling", "cancelling"),
        ("cancelled", "cancelled"),
        ("pre_schedule", "pre_schedule"),
    ],
)
def test_spellings_of_a_status_are_unified(spelling: str, status: str) -> None:
    assert batch(status=spelling).status == status


class Listing(AzureBatches):
    """An account that lists these batches in this order, two a page."""

    def __init__(self, *batches: ProviderBatch) -> None:
        super().__init__(AsyncOpenAI(api_key="sk"))
        self._batches: Sequence[ProviderBatch] = batches
        self.pages = 0

    async def list(self, after: str | None) -> BatchPage:
        self.pages += 1
        start = 0
        if after is not None:
            start = [batch.id for batch in self._batches].index(after) + 1
        return BatchPage(list(self._batches[start : start + 2]), start + 2 < len(self._batches))


async def none(custom_id: str) -> bool:
    return False


FINGERPRINT = BatchFingerprint("intent", "ours", 6 * HOUR, 1, frozenset(), none)


def created(hours: float, file: str = "another") -> ProviderBatch:
    return ProviderBatch(f"created-{hours}", "completed", hours * HOUR, input_file_id=file)


@pytest.mark.anyio
async def test_a_search_ends_with_a_page_that_is_too_old_and_goes_back_in_time() -> None:
    listing = Listing(
        created(9), created(8, "ours"), created(3), created(2), created(1), created(0)
    )
    (found,) = await find_batches(listing, FINGERPRINT)
    assert (found.id, listing.pages) == ("created-8", 2)


@pytest.mark.anyio
@pytest.mark.parametrize("times", [(0, 1, 2, 3), (0, 0, 1, 1), (0, 0, 0, 0)])
async def test_an_unordered_list_is_read_to_its_end(
    times: Sequence[int],
) -> None:
    others = [ProviderBatch(f"b{n}", "completed", hours * HOUR) for n, hours in enumerate(times)]
    (found,) = await find_batches(Listing(*others, created(8, "ours")), FINGERPRINT)
    assert found.id == "created-8"


@pytest.mark.anyio
async def test_a_search_ends_when_the_server_repeats_a_page() -> None:
    class Stuck(OpenAIBatches):
        async def list(self, after: str | None) -> BatchPage:
            return BatchPage([created(8, "ours"), created(7)], True)

    (found,) = await find_batches(Stuck(AsyncOpenAI(api_key="sk")), FINGERPRINT)
    assert found.id == "created-8"


@pytest.mark.anyio
async def test_a_list_with_too_many_pages_does_not_prove_absence() -> None:
    class Endless(OpenAIBatches):
        async def list(self, after: str | None) -> BatchPage:
            return BatchPage([ProviderBatch(f"after-{after}", "completed", 9 * HOUR)], True)

    with pytest.raises(ProviderCallFailed, match="more than 100 pages"):
        await find_batches(Endless(AsyncOpenAI(api_key="sk")), FINGERPRINT)


class Undecided(Listing):
    """An account that cannot know its running batches yet."""

    async def matches(self, remote: ProviderBatch, sought: BatchFingerprint) -> Any:
        return None if remote.status == "in_progress" else await super().matches(remote, sought)


@pytest.mark.anyio
async def test_an_undecided_batch_does_not_prove_absence() -> None:
    undecided = ProviderBatch("undecided", "in_progress", 9 * HOUR)
    with pytest.raises(ProviderCallFailed, match="such as undecided"):
        await find_batches(Undecided(created(9), undecided), FINGERPRINT)
    (found,) = await find_batches(Undecided(undecided, created(8, "ours")), FINGERPRINT)
    assert found.id == "created-8"
