"""What the realtime lane does with a provider's errors: whose fault it is decides."""

from __future__ import annotations

from typing import Any

import pytest

from config.fleet import FleetConfig
from primarch_fleet import EmbeddingRequest, ResponsesRequest, errors
from primarch_fleet.requests import Request
from tests.support.realtime_fixture import (
    Ask,
    ask_server,
    chat,
    config,
    deployment,
    failing,
    open_provider,
    pair,
)
from workers.observability import metrics
from workers.onebox.simulator.profile import Fault, Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

__all__ = ["ask_server", "open_provider"]  # fixtures

FAILED = ("error", "network_error", "insufficient_system_resource", "abort", "of tomorrow")
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}
#: The parts of a stream whose generation fails before its first token.
NO_TOKEN = (
    {**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
    "[DONE]",
)
WITH_SMALL = config(fallbacks={"big": ["small"]})
QUOTA = {"status": 429, "code": "insufficient_quota", "message": "You exceeded your quota."}


def finishes(reason: str, **rule: Any) -> Script:
    return Script(model="big-1", merge={"choices": [{"finish_reason": reason}]}, **rule)


@pytest.mark.parametrize("reason", FAILED)
def test_a_generation_that_failed_with_status_200_is_answered_by_another_deployment(
    ask: Ask, simulator: Simulator, reason: str
) -> None:
    simulator.script(finishes(reason))
    both = config(pair("big", {}, {}), allowed_fails=1_000)
    answers = ask(*[chat()] * 4, config=both)
    assert {answer.receipt.deployment for answer in answers} == {"big-2"}
    assert {answer.body["choices"][0]["finish_reason"] for answer in answers} == {"stop"}


@pytest.mark.parametrize("provider", ["openai", "deepseek", "openrouter"])
def test_a_stream_that_failed_before_its_first_token_is_answered_by_another_deployment(
    ask: Ask, simulator: Simulator, provider: str
) -> None:
    simulator.script(Script(model="big-1", chunks=NO_TOKEN))
    answers = ask(*[chat(stream=True)] * 4, config=at(provider, pair("big", {}, {})))
    assert {answer.receipt.deployment for answer in answers} == {"big-2"}


@pytest.mark.parametrize("provider", ["openai", "deepseek", "openrouter"])
@pytest.mark.parametrize("reason", FAILED)
def test_a_stream_that_failed_after_its_first_token_is_a_retryable_failure(
    ask: Ask, simulator: Simulator, provider: str, reason: str
) -> None:
    simulator.script(finishes(reason))
    with pytest.raises(errors.ProviderUnavailable) as caught:
        ask(chat(stream=True), config=at(provider, pair("big", {"order": 1}, {"order": 2})))
    assert caught.value.retryable
    assert simulator.stats()["calls"]["chat.completions"] == {"200": 1}, "half was published"


def test_failed_generations_cool_their_deployment_down(ask: Ask, simulator: Simulator) -> None:
    simulator.script(finishes("error"))
    cooled = config(pair("big", {}, {}), allowed_fails=0, cooldown_time=60)
    ask(*[chat()] * 20, config=cooled)
    assert simulator.stats()["calls"]["chat.completions"]["200"] <= 21


def test_a_failed_generation_without_another_deployment_is_a_retryable_failure(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.script(finishes("error"))
    with pytest.raises(errors.ProviderUnavailable, match="finish_reason: error"):
        ask(chat(cache_ttl=60))


def test_no_fallback_answers_a_request_that_is_itself_at_fault(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.profile = Profile()
    fleet = config(
        [model("gpt-5"), model("gpt-4o-mini")], fallbacks={"gpt-5": ["gpt-4o-mini"]}, num_retries=2
    )
    with pytest.raises(errors.ProviderError, match="temperature"):
        ask(chat("gpt-5", temperature=0.2), config=fleet)
    assert simulator.stats()["calls"] == {}


ERROR = {"code": 502, "message": "The provider behind it is down."}


@pytest.mark.parametrize(
    "script",
    [
        Script(body={"error": "boom"}),
        Script(body={"error": ERROR}),
        Script(body={"error": {"message": "No capacity."}}),
        Script(body={"error": {"code": "server_error", "message": "No."}}),
        Script(body={"error": {"code": "503", "message": "No."}}),
        Script(body={"detail": "no answer"}),
        Script(body={**HEAD, "object": "chat.completion", "choices": []}),
        Script(chunks=()),
        Script(chunks=("[DONE]",)),
        Script(chunks=({**HEAD, "choices": []}, "[DONE]")),
        Script(chunks=({"error": "boom"}, "[DONE]")),
        Script(chunks=({"error": ERROR}, "[DONE]")),
        Script(chunks=({**HEAD, "choices": [{"delta": {}, "index": 0, "error": ERROR}]}, "[DONE]")),
    ],
)
def test_an_answer_with_status_200_that_is_none_is_answered_by_the_fallback(
    ask: Ask, simulator: Simulator, script: Script
) -> None:
    simulator.script(script.model_copy(update={"model": "big-1"}))
    [answer] = ask(chat(stream=script.chunks is not None), config=WITH_SMALL)
    assert answer.receipt.deployment == "small-1"
    assert answer.receipt.fallback_reason == "big-1: provider_unavailable"


def test_an_embedding_answer_without_data_is_a_retryable_failure(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.script(Script(body={"object": "list", "model": "vectors-1", "data": []}))
    with pytest.raises(errors.ProviderUnavailable, match="it is empty"):
        ask(EmbeddingRequest(model="vectors", input="Hello"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "unsupported_value", "message": "No."}, errors.ProviderError),
        ({"code": "context_length_exceeded", "message": "No."}, errors.ContextWindowExceeded),
        ({"code": 402, "message": "Insufficient credits"}, errors.AccountUnavailable),
        ({"code": "insufficient_quota", "message": "No."}, errors.AccountUnavailable),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_error_in_an_answer_with_status_200_means_what_it_says(
    ask: Ask, simulator: Simulator, error: dict[str, Any], kind: type[Exception], is_streamed: bool
) -> None:
    simulator.script(error_in_answer(error, is_streamed))
    with pytest.raises(errors.ProviderError) as caught:
        ask(chat(stream=is_streamed), config=WITH_SMALL)
    assert type(caught.value) is kind
    assert simulator.stats()["calls"]["chat.completions"] == {"200": 1}


@pytest.mark.parametrize("code", [429, "429", "rate_limit_exceeded"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_rate_limit_in_an_answer_with_status_200_is_one(
    ask: Ask, simulator: Simulator, code: object, is_streamed: bool
) -> None:
    simulator.script(error_in_answer({"code": code, "message": "No."}, is_streamed))
    with pytest.raises(errors.RateLimited):
        ask(chat(stream=is_streamed))


@pytest.mark.parametrize(
    "quoted",
    [
        "insufficient credits",
        "incorrect api key provided",
        "x' and 'your credit balance is too low",
        "x\ninsufficient credits",
        "organization must be verified",
    ],
)
def test_what_a_refusal_quotes_of_a_request_pauses_no_account(
    ask: Ask, simulator: Simulator, quoted: str
) -> None:
    """One tenant could stop the account of all: OpenAI's API quotes a wrong value."""
    error = {
        "message": f"Invalid value: '{quoted}'. Supported values are: 'low' and 'high'.",
        "type": "invalid_request_error",
        "param": "verbosity",
        "code": "invalid_value",
    }
    simulator.script(Script(status=400, body={"error": error}, times=1))
    with pytest.raises(errors.ProviderError) as refused:
        ask(chat())
    assert type(refused.value) is errors.ProviderError
    (answer,) = ask(chat())
    assert answer.receipt.attempts == 1


@pytest.mark.parametrize(
    ("request_", "script"),
    [
        (
            ResponsesRequest(model="big", input="Say hello.", stream=True),
            Script(chunks=({"error": ERROR},)),
        ),
        (chat(stream=True), Script(merge={"usage": []}, billed={})),
    ],
)
def test_a_stream_that_litellm_cannot_read_is_a_retryable_failure(
    ask: Ask, simulator: Simulator, request_: Request, script: Script
) -> None:
    simulator.script(script)
    with pytest.raises(errors.ProviderUnavailable, match="cannot read its stream"):
        ask(request_)


def error_in_answer(error: dict[str, Any], is_streamed: bool) -> Script:
    if is_streamed:
        return Script(model="big-1", chunks=({"error": error}, "[DONE]"))
    return Script(model="big-1", body={"error": error})


def test_a_code_counts_where_litellm_keeps_no_body(ask: Ask, simulator: Simulator) -> None:
    missing = Fault(model="big-1", status=404, code="previous_response_not_found", message="No.")
    simulator.profile = failing(missing)
    with pytest.raises(errors.ProviderError, match="No"):
        ask(chat(), config=WITH_SMALL)
    assert simulator.stats()["calls"]["chat.completions"] == {"404": 1}


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_provider_refuses_is_sent_once(
    ask: Ask, simulator: Simulator, status: int, stream: bool
) -> None:
    message = "Unsupported value: 'temperature' does not support 0.2 with this model."
    refuse = Fault(model="big-1", status=status, code="unsupported_value", message=message)
    simulator.profile = failing(refuse)
    fleet = config(fallbacks={"big": ["small"]}, num_retries=2)
    with pytest.raises(errors.ProviderError, match="temperature") as caught:
        ask(chat(stream=stream), config=fleet)
    assert type(caught.value) is errors.ProviderError
    assert simulator.stats()["calls"]["chat.completions"] == {str(status): 1}


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (
            "context_length_exceeded",
            "This model's maximum context length is 8192 tokens.",
            "window",
        ),
        (None, "Input is too long for requested model.", "window"),
        ("content_policy_violation", "safety system", "policy"),
    ],
)
def test_a_prompt_that_is_at_fault_is_answered_only_by_the_fallback_for_that(
    ask: Ask, simulator: Simulator, code: str | None, message: str, kind: str
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=400, code=code, message=message))
    with pytest.raises((errors.ContextWindowExceeded, errors.ContentPolicyViolation)):
        ask(chat(), config=WITH_SMALL)
    assert simulator.stats()["calls"]["chat.completions"] == {"400": 1}
    table = {"window": "context_window_fallbacks", "policy": "content_policy_fallbacks"}[kind]
    [answer] = ask(chat(), config=config(**{table: {"big": ["small"]}}))
    assert answer.receipt.deployment == "small-1"


def test_a_fallback_says_why_and_which_parameters_its_configuration_dropped(
    ask: Ask, simulator: Simulator
) -> None:
    down = Fault(model="gpt-4o", status=503, message="down")
    simulator.profile = Profile(faults=(down,))
    fleet = config(
        [model("gpt-4o"), model("gpt-5-mini", litellm_params={"drop_params": True})],
        fallbacks={"gpt-4o": ["gpt-5-mini"]},
    )
    [answer, plain] = ask(chat("gpt-4o", temperature=0.2, seed=7), chat("gpt-4o"), config=fleet)
    assert answer.receipt.deployment == "gpt-5-mini"
    assert answer.receipt.fallback_reason == "gpt-4o: provider_unavailable"
    assert answer.receipt.dropped_parameters == ["temperature"]
    assert plain.receipt.dropped_parameters == []
    sent = [call["body"] for call in simulator.requests() if call["body"]["model"] == "gpt-5-mini"]
    assert ["temperature" in body for body in sent] == [False, False]
    assert sent[0]["seed"] == 7


def test_a_fallback_for_a_deployment_that_is_left_alone_says_so(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=429, retry_after=60))
    answers = ask(chat(), chat(), config=WITH_SMALL)
    assert [answer.receipt.fallback_reason for answer in answers] == [
        "big-1: rate_limited",
        "big: no deployment available",
    ]


def test_an_answer_of_the_requested_model_has_no_fallback_reason(ask: Ask) -> None:
    [answer] = ask(chat(), config=WITH_SMALL)
    assert (answer.receipt.fallback_reason, answer.receipt.dropped_parameters) == (None, [])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (QUOTA, "billing"),
        ({"status": 400, "code": "billing_hard_limit_reached"}, "billing"),
        ({"status": 402}, "billing"),
        ({"status": 401, "code": "invalid_api_key"}, "credentials"),
    ],
)
def test_a_refused_account_gets_no_more_calls_and_raises_one_alarm(
    ask: Ask, simulator: Simulator, fault: dict[str, Any], reason: str, caplog: Any
) -> None:
    """The other account answers, and the account's other models are not called either."""
    before = alarms(reason)
    simulator.profile = failing(Fault(model="big-1", **fault))
    fleet = two_accounts()
    answers = ask(*[chat()] * 3, chat("other"), config=fleet)
    assert {answer.receipt.deployment for answer in answers} == {"small-1"}
    assert answers[0].receipt.attempts == 2
    assert [answer.receipt.attempts for answer in answers[1:]] == [1, 1, 1]
    actions = [record.action for record in caplog.records if hasattr(record, "action")]
    assert actions.count("account_paused") == 1
    assert alarms(reason) - before == 1


def test_a_request_waits_for_an_account_without_credit(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(Fault(model="big-1", times=2, **QUOTA))
    patient = config(max_wait=30, account_pause=1, num_retries=2)
    [answer] = ask(chat(), config=patient)
    assert answer.receipt.attempts == 3
    assert answer.receipt.latency > 3, "a second, then two"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (QUOTA, errors.AccountUnavailable),
        ({"status": 401}, errors.AuthenticationFailed),
        ({"status": 403}, errors.AuthenticationFailed),
    ],
)
def test_a_request_for_a_paused_account_fails_without_a_call_and_may_be_sent_again(
    ask: Ask, simulator: Simulator, fault: dict[str, Any], kind: type[errors.FleetError]
) -> None:
    simulator.profile = failing(Fault(model="big-1", **fault))

    for _ in range(2):  # by two processes: the second finds the pause in Redis
        with pytest.raises(errors.ProviderError) as caught:
            ask(chat(), config=config(account_pause=60))
        assert type(caught.value) is kind
        assert caught.value.retryable
    assert sum(simulator.stats()["calls"]["chat.completions"].values()) == 1


def test_a_missing_permission_pauses_only_its_deployment(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(Fault(model="big-1", status=403, message="Not this model."))
    with pytest.raises(errors.AuthenticationFailed):
        ask(chat())
    [answer] = ask(chat("small"))
    assert answer.receipt.deployment == "small-1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_timeout_is_repeated_only_if_configured(
    ask: Ask, simulator: Simulator, stream: bool, retries: int
) -> None:
    simulator.script(Script(model="big-1", delay=2.0), Script(model="big-2", delay=2.0))
    fleet = config(
        pair("big", {}, {}),
        timeout=0.3,
        stream_timeout=0.3,
        num_retries=2,
        router_settings={"retry_policy": {"TimeoutErrorRetries": retries}},
        allowed_fails=1_000,
    )
    with pytest.raises(errors.ProviderTimeout):
        ask(chat(stream=stream), config=fleet)
    sent = len(simulator.requests())
    assert sent == 1 if not retries else sent >= 1 + retries


@pytest.mark.parametrize("stream", [False, True])
def test_max_latency_lengthens_the_timeouts_of_a_call(
    ask: Ask, simulator: Simulator, stream: bool
) -> None:
    simulator.script(Script(model="big-1", delay=1.0, times=1))
    [answer] = ask(
        chat(stream=stream, max_latency=600), config=config(timeout=0.3, stream_timeout=0.3)
    )
    assert (answer.receipt.attempts, len(simulator.requests())) == (1, 1)


@pytest.mark.parametrize(("stream", "name"), [(False, "timeout"), (True, "stream_timeout")])
def test_a_deployment_has_timeouts_of_its_own(
    ask: Ask, simulator: Simulator, stream: bool, name: str
) -> None:
    simulator.script(Script(model="big-1", delay=1.0))
    fleet = config(
        [deployment("big-1", params={name: 5})], timeout=0.3, stream_timeout=0.3, num_retries=2
    )
    [answer] = ask(chat(stream=stream), config=fleet)
    assert answer.receipt.attempts == 1


def model(name: str, **fields: Any) -> dict[str, Any]:
    """A deployment of a model under its own name."""
    price = {"input": "1", "output": "2"}
    identity = {"id": name, "model": name, "upstream": name, "provider": "simulated"}
    return {**identity, "price": price, **fields}


def at(provider: str, deployments: list[dict[str, Any]]) -> FleetConfig:
    """Deployments at a provider by LiteLLM's name, at the simulator's address."""
    fleet = config(deployments, allowed_fails=1_000).model_dump(mode="json")
    fleet["providers"]["simulated"]["litellm_provider"] = provider
    return FleetConfig.model_validate(fleet)


def two_accounts() -> FleetConfig:
    """`big` and `other` at one account, `small` at another."""
    other = deployment("big-2") | {"model": "other"}
    return FleetConfig.model_validate(
        {
            "providers": {
                name: {
                    "litellm_provider": "openai",
                    "api_key": "os.environ/TEST_KEY",
                    "api_base": "os.environ/TEST_BASE",
                }
                for name in ("simulated", "spare")
            },
            "deployments": [deployment("big-1"), other, deployment("small-1", provider="spare")],
            "routing": {
                "fallbacks": {"big": ["small"], "other": ["small"]},
                "num_retries": 2,
                "max_wait": 0,
            },
        }
    )


def alarms(reason: str) -> float:
    return float(metrics.account_alarms_total.labels("simulated", reason)._value.get())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "server_error", "message": "Oops."}, errors.ProviderUnavailable),
        ({"code": "rate_limit_exceeded", "message": "Slow."}, errors.RateLimited),
        ({"code": "invalid_prompt", "message": "No."}, errors.ProviderError),
    ],
)
def test_a_response_that_failed_with_status_200_is_a_failure(
    ask: Ask, simulator: Simulator, error: dict[str, Any], kind: type[Exception], stream: bool
) -> None:
    simulator.script(Script(model="big-1", merge={"status": "failed", "error": error}))
    request = ResponsesRequest(model="big", input="Say hello.", stream=stream)
    with pytest.raises(errors.ProviderError) as caught:
        ask(request)
    assert type(caught.value) is kind
