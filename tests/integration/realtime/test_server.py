"""The realtime lane's server: the real Router and the provider simulator over HTTP."""

from queue import Queue
from typing import Any

import litellm
import pytest
from litellm import exceptions
from litellm.integrations.custom_logger import CustomLogger
from openai import OpenAIError
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from config.fleet import FleetConfig
from primarch_fleet import EmbeddingRequest, errors
from tests.support.realtime_fixture import (
    KEY,
    Ask,
    ask_server,
    chat,
    config,
    deployment,
    failing,
    open_provider,
    pair,
)
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator
from workers.realtime.errors import REASONS, translate

__all__ = ["ask_server", "open_provider"]  # fixtures

#: Errors that only LiteLLM's proxy server raises, which the fleet does not run.
PROXY_ONLY = {
    "BlockedPiiEntityError",
    "BudgetExceededError",
    "GuardrailRaisedException",
    "ModelNotMappedError",
    "ModifyResponseException",
    "SensitiveDataRouteException",
}
LIMITED = {"rpm": 100, "tpm": 100_000}


def test_a_chat_returns_openais_body_and_a_complete_receipt(ask: Ask, simulator: Simulator) -> None:
    [answer] = ask(chat(tenant_id="t", user_id="u", metadata={"k": 1}))
    body = ChatCompletion.model_validate(answer.body)
    receipt = answer.receipt
    assert body.choices[0].message.content == answer.text != ""
    assert (receipt.lane, receipt.provider, receipt.deployment) == (
        "realtime",
        "simulated",
        "big-1",
    )
    assert (receipt.requested_model, receipt.model) == ("big", "big-1")
    assert (receipt.attempts, receipt.fallbacks) == (1, 0)
    assert (receipt.tenant_id, receipt.user_id, receipt.metadata) == ("t", "u", {"k": 1})
    assert (receipt.queue_wait, receipt.time_to_first_token) == (0.5, None)
    assert (
        receipt.cost_nanousd
        == receipt.list_cost_nanousd
        == 2_000 * receipt.input_tokens + 8_000 * receipt.output_tokens
    )
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"] > 0


def test_an_embedding_request_returns_vectors(ask: Ask, simulator: Simulator) -> None:
    [answer] = ask(EmbeddingRequest(model="vectors", input=["one", "two"], encoding_format="float"))
    assert len(CreateEmbeddingResponse.model_validate(answer.body).data) == 2
    assert answer.receipt.output_tokens == 0
    assert answer.receipt.cost_nanousd == simulator.invoice()["total_nanousd"]


def test_a_streamed_chat_is_complete_and_has_a_time_to_first_token(ask: Ask) -> None:
    plain, streamed = ask(chat(), chat(stream=True))
    assert streamed.text == plain.text
    assert streamed.receipt.cost_nanousd == plain.receipt.cost_nanousd
    assert streamed.receipt.time_to_first_token is not None
    assert 0 < streamed.receipt.time_to_first_token <= streamed.receipt.latency
    assert ChatCompletion.model_validate(streamed.body).choices[0].finish_reason == "stop"


def test_a_fallback_is_counted_and_priced_by_the_model_that_answered(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=500, message="broken"))
    [answer] = ask(chat(), config=config(fallbacks={"big": ["small"]}, num_retries=1))
    receipt = answer.receipt
    assert (receipt.requested_model, receipt.model) == ("big", "small-1")
    assert (receipt.attempts, receipt.fallbacks) == (3, 1)
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"] < receipt.list_cost_nanousd


@pytest.mark.parametrize(
    ("fault", "table", "kind"),
    [
        (
            {
                "status": 400,
                "code": "context_length_exceeded",
                "message": "This model's maximum context length is 8192 tokens.",
            },
            "context_window_fallbacks",
            errors.ContextWindowExceeded,
        ),
        (
            {"status": 400, "code": "content_policy_violation", "message": "safety system"},
            "content_policy_fallbacks",
            errors.ContentPolicyViolation,
        ),
    ],
)
def test_context_window_and_content_policy_have_their_own_fallbacks(
    ask: Ask, simulator: Simulator, fault: dict[str, Any], table: str, kind: type[Exception]
) -> None:
    simulator.profile = failing(Fault(model="big-1", **fault))
    with pytest.raises(kind):
        ask(chat())
    [answer] = ask(chat(), config=config(**{table: {"big": ["small"]}}))
    assert answer.receipt.deployment == "small-1"


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        (
            {"status": 401, "message": f"Incorrect API key: {KEY}"},
            errors.AuthenticationFailed,
            True,
        ),
        ({"status": 404, "message": "no such model"}, errors.ProviderError, False),
        ({"status": 400, "message": "bad parameter"}, errors.ProviderError, False),
        ({"status": 429, "message": "slow down"}, errors.RateLimited, True),
        ({"status": 500}, errors.ProviderUnavailable, True),
        ({"status": 503}, errors.ProviderUnavailable, True),
        ({"drop": "before_response"}, errors.ProviderUnavailable, True),
        ({"delay": 5}, errors.ProviderTimeout, True),
    ],
)
def test_a_provider_error_becomes_a_fleet_error_without_the_key(
    ask: Ask,
    simulator: Simulator,
    fault: dict[str, Any],
    kind: type[errors.FleetError],
    retryable: bool,
) -> None:
    simulator.profile = failing(Fault(**fault))
    with pytest.raises(errors.RequestFailed) as caught:
        ask(chat(), config=config(timeout=0.5))
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unknown_model_is_refused_without_a_provider_call(
    ask: Ask, simulator: Simulator
) -> None:
    """A plain Celery producer gets the error from the worker only."""
    with pytest.raises(errors.UnknownModel, match="gpt-9"):
        ask(chat("gpt-9"))
    assert simulator.stats()["calls"] == {}


def two(**routing: Any) -> FleetConfig:
    return config(pair("big", LIMITED, LIMITED), **routing)


@pytest.mark.parametrize(
    "strategy",
    ["simple-shuffle", "least-busy", "usage-based-routing-v2", "latency-based-routing"],
)
def test_every_strategy_answers_and_is_in_the_receipt(ask: Ask, strategy: str) -> None:
    answers = ask(*[chat()] * 4, config=two(routing_strategy=strategy))
    assert [answer.receipt.strategy for answer in answers] == [strategy] * 4
    assert {answer.receipt.deployment for answer in answers} <= {"big-1", "big-2"}


def test_every_error_of_litellm_is_translated() -> None:
    """Fails if LiteLLM adds an error that neither its class nor a status would translate."""
    classes = [value for value in vars(exceptions).values() if isinstance(value, type)]
    untranslated = {
        error.__name__
        for error in classes
        if issubclass(error, Exception)
        and not any(base in REASONS or base is OpenAIError for base in error.__mro__)
    }
    assert untranslated == PROXY_ONLY
    assert type(translate(ValueError("x"))) is errors.ProviderError


def test_litellms_callbacks_get_the_cost_by_the_fleets_prices(
    ask: Ask, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM would compute it itself, without the price of cached tokens."""
    costs = Queue[float]()

    class Costs(CustomLogger):
        async def async_log_success_event(self, kwargs: Any, *_: Any, **__: Any) -> None:
            costs.put(kwargs["response_cost"])

    monkeypatch.setattr(litellm, "callbacks", [*litellm.callbacks, Costs()])
    simulator.script(Script(merge={"usage": {"prompt_tokens_details": {"cached_tokens": 4}}}))
    price = {"input": "2", "output": "8", "cached_input": "0.5"}
    [answer] = ask(chat(), config=config([deployment("big-1", price=price)]))
    assert answer.receipt.usage.cached_input_tokens == 4
    assert costs.get(timeout=10) == answer.receipt.cost_nanousd / 10**9
