"""An account at Anthropic: its refusals, and those of the simulated API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from scheduler.providers.errors import ProviderCallFailed, ProviderRefused
from tasks.failure_reasons import Reason
from tests.support.batch_accounts import account
from tests.support.batch_fixture import profile
from workers.onebox.simulator.anthropic import AnthropicApp
from workers.onebox.simulator.profile import Fault, Profile
from workers.onebox.simulator.server import Simulator

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 429, "retry_after": 30}, Reason.RATE_LIMIT),
        ({"status": 404}, Reason.MODEL_NOT_FOUND),
        ({"status": 402}, Reason.BILLING),
        ({"status": 400, "message": "Your credit balance is too low"}, Reason.BILLING),
        ({"status": 400}, Reason.INVALID_REQUEST),
    ],
)
async def test_a_refusal_says_what_is_the_reason(fault: dict[str, Any], reason: Reason) -> None:
    refuse = Fault(endpoint="batches.retrieve", **fault)
    with Simulator(profile(refuse), app=AnthropicApp) as simulator:
        provider = account("anthropic", "", simulator.url)
        with pytest.raises(ProviderRefused) as refused:
            await provider.retrieve("msgbatch_1")
        assert (refused.value.status, refused.value.fault.reason) == (fault["status"], reason)
        assert refused.value.retry_after == fault.get("retry_after")
        await provider.close()


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 529}, {"status": 409}, {"drop": "before_response"}]
)
async def test_the_effect_of_any_other_failure_is_unknown(fault: dict[str, Any]) -> None:
    fail = Fault(endpoint="batches.cancel", **fault)
    with Simulator(profile(fail), app=AnthropicApp) as simulator:
        provider = account("anthropic", "", simulator.url)
        with pytest.raises(ProviderCallFailed) as failure:
            await provider.cancel("msgbatch_1")
        assert not isinstance(failure.value, ProviderRefused)
        assert simulator.stats()["calls"]["batches.cancel"].popitem()[1] == 1
        await provider.close()


async def test_a_wrong_key_is_an_account_error() -> None:
    with Simulator(Profile(api_keys=frozenset({"another"})), app=AnthropicApp) as simulator:
        provider = account("anthropic", "", simulator.url)
        with pytest.raises(ProviderRefused) as refused:
            await provider.list(None)
        assert (refused.value.status, refused.value.fault.reason) == (401, Reason.CREDENTIALS)
        await provider.close()


async def test_the_simulated_anthropic_refuses_what_anthropic_does() -> None:
    """What AnthropicBatches must not do, so that the tests above prove something."""
    params = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    dated = {"x-api-key": "sk", "anthropic-version": "2023-06-01"}
    with Simulator(app=AnthropicApp) as simulator:
        url = f"{simulator.url}/messages/batches"
        async with httpx.AsyncClient() as client:

            async def create(*requests: Any) -> Any:
                return await client.post(url, json={"requests": requests}, headers=dated)

            for headers in ({}, {"x-api-key": "sk"}):
                assert (await client.get(url, headers=headers)).status_code in (400, 401)
            good = {"custom_id": "a-1", "params": params}
            endless = {key: value for key, value in params.items() if key != "max_tokens"}
            system = {**params, "messages": [{"role": "system", "content": "hi"}]}
            for wrong in (
                [{"custom_id": "a b", "params": params}],
                [{"custom_id": "a" * 65, "params": params}],
                [good, good],
                [{"custom_id": "a", "params": endless}],
                [{"custom_id": "a", "params": system}],
                [],
            ):
                answer = await create(*wrong)
                assert answer.status_code == 400
                assert answer.json()["error"]["type"] == "invalid_request_error"
            made = (await create(good)).json()
            assert made["request_counts"]["processing"] == 1
            early = await client.get(f"{url}/{made['id']}/results", headers=dated)
            assert early.status_code == 404
            later = [(await create(good)).json()["id"] for _ in range(2)]
            before = {"before_id": made["id"], "limit": 1}
            page = (await client.get(url, params=before, headers=dated)).json()
            assert (page["last_id"], page["has_more"]) == (later[0], True)
