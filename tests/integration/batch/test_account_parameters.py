"""LiteLLM's parameters of an account, as the batch lane sends them."""

import os
from typing import Any

import pytest

from config.provider import Provider
from scheduler.providers import PROVIDERS
from tests.support.account_stub import AccountStub, Sent


async def listed(litellm_provider: str, **params: Any) -> Sent:
    """What an account sends to ask for its batches."""
    os.environ |= {"TEST_SECRET": "secret-of-the-test", "AZURE_API_VERSION": "2020-01-01"}
    with AccountStub().running() as stub:
        values = {"api_base": stub.url, **params}
        entry = {"litellm_provider": litellm_provider, "litellm_params": values}
        account = PROVIDERS[litellm_provider].from_config(Provider.model_validate(entry))
        try:
            assert (await account.list(None)).batches == []
        finally:
            await account.close()
        return stub.only("/batches$")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("version", "path", "sent_version"),
    [("2025-01-01", "/openai/batches", ["2025-01-01"]), ("v1", "/openai/v1/batches", None)],
)
async def test_an_azure_account_has_its_own_version_and_a_token_in_place_of_a_key(
    version: str, path: str, sent_version: list[str] | None
) -> None:
    sent = await listed(
        "azure",
        api_version=version,
        azure_ad_token="os.environ/TEST_SECRET",
        extra_headers={"x-team": "blue"},
    )
    assert (sent.path, sent.query.get("api-version")) == (path, sent_version)
    assert sent.headers["authorization"] == "Bearer secret-of-the-test"
    assert "api-key" not in sent.headers
    assert sent.headers["x-team"] == "blue"


@pytest.mark.anyio
async def test_an_account_has_its_key_its_organization_and_its_headers() -> None:
    sent = await listed(
        "openai",
        api_key="os.environ/TEST_SECRET",
        organization="org-1",
        extra_headers={"x-team": "blue"},
    )
    names = ("authorization", "openai-organization", "x-team")
    assert [sent.headers[name] for name in names] == ["Bearer secret-of-the-test", "org-1", "blue"]


@pytest.mark.anyio
async def test_a_gateway_without_a_key_is_asked_without_one() -> None:
    sent = await listed("hosted_vllm")
    assert sent.headers["authorization"] == "Bearer fake-api-key"
