"""The translation of requests to the form of the provider that serves them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from config.provider import Deployment, Provider
from config.requests import RequestPolicy
from primarch_fleet.requests import CompletionRequest, EmbeddingRequest
from primarch_fleet.requests.defaults import DEFAULTS
from scheduler.model.jsonl import TranslatedRequest
from scheduler.providers.translator import (
    PLAIN_MESSAGES,
    UNCHANGED_MODELS,
    UNCHANGED_PARAMETERS,
    Translator,
    Untranslatable,
)
from tasks.privacy import Privacy
from tests.support import parameters

CLAUDE, GEMINI = ("anthropic", "claude-sonnet-4-5"), ("gemini", "gemini-2.5-flash")
GPT_4O, GPT_5 = ("openai", "gpt-4o-mini"), ("openai", "gpt-5-mini")
GROQ, VLLM = ("groq", "llama-3.3-70b-versatile"), ("hosted_vllm", "qwen")
SECRET = "what nobody else may read"
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
LINK = 'see <a href="http://example.com/">this</a>'


def translator(
    kind: str, upstream: str, privacy: Privacy | None = None, **params: Any
) -> Translator:
    os.environ |= {"TEST_KEY": "sk-of-the-test", "TEST_BASE": "http://there.example/v1"}
    provider = {
        "litellm_provider": kind,
        "api_key": "os.environ/TEST_KEY",
        "api_base": "os.environ/TEST_BASE" if kind in ("hosted_vllm", "azure") else None,
    }
    deployment = {
        "id": "the-deployment",
        "model": "m",
        "provider": "somewhere",
        "upstream": upstream,
        "price": {"input": "1", "output": "2"},
        "params": params,
    }
    return Translator(
        Deployment.model_validate(deployment),
        Provider.model_validate(provider),
        privacy or Privacy(RequestPolicy(), b"key"),
    )


def translated(
    target: tuple[str, str], *turns: dict[str, Any], **options: Any
) -> TranslatedRequest:
    messages = list(turns) or [{"role": "user", "content": SECRET}]
    request = CompletionRequest(model="m", messages=messages, **options)
    return translator(*target).translate(request)


def refused(target: tuple[str, str], *turns: dict[str, Any], **options: Any) -> str:
    """The error of a request that cannot be translated."""
    with pytest.raises(Untranslatable) as error:
        translated(target, *turns, **options)
    assert SECRET not in str(error.value)
    return str(error.value)


def parts(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": SECRET}, *content]}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def contents(request: TranslatedRequest) -> list[Any]:
    """The content of each message."""
    return [message["content"] for message in request.body["messages"]]


def test_a_plain_chat_with_openai_needs_no_litellm() -> None:
    code = (
        "import sys\n"
        "from tests.unit.test_translation import GPT_4O, translated\n"
        "assert translated(GPT_4O, max_tokens=5, temperature=0.5).body['model'] == 'gpt-4o-mini'\n"
        "import scheduler.jobs.pipeline, scheduler.providers.accounts\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported = set(run.stdout.split())
    assert "scheduler.providers.anthropic" in imported, run.stderr
    assert not imported & {"anthropic", "litellm"}


def test_litellm_changes_no_chat_that_is_sent_unchanged() -> None:
    import workers.realtime  # noqa: F401, PLC0415 - LiteLLM's settings, before its import
    import litellm  # noqa: PLC0415 # isort: skip

    values: dict[str, Any] = {"stop": ["x"], "logit_bias": {"1": 2}, "logprobs": True}
    values |= {"user": "u", "safety_identifier": "s"}
    models = sorted(filter(UNCHANGED_MODELS.fullmatch, litellm.open_ai_chat_completion_models))
    assert {"gpt-4o", "gpt-4o-mini", "gpt-4.1-nano", "gpt-3.5-turbo"} < set(models)
    for kind, names in UNCHANGED_PARAMETERS.items():
        options = {name: values.get(name, 1) for name in names - {"max_tokens"}}
        for model in models:
            changing = translator(kind, model)
            for sent in (options, {"max_tokens": 5}):
                request = CompletionRequest(model="m", messages=PLAIN_MESSAGES, **sent)
                assert changing._prepare(request).body == {**request.body(), "model": model}
                assert changing.translate(request).body == {**request.body(), "model": model}


@pytest.mark.parametrize(
    ("target", "field"),
    [(GPT_4O, "safety_identifier"), (GPT_5, "safety_identifier"), (VLLM, "cache_salt")],
)
def test_each_end_user_has_another_hash(target: tuple[str, str], field: str) -> None:
    model = translator(*target)
    ask: dict[str, Any] = {"model": "m", "messages": PLAIN_MESSAGES, "max_tokens": 5}
    hashes = [
        model.translate(CompletionRequest(**ask, user_id=name, tenant_id=name)).body[field]
        for name in ("ann", "ben", "ann")
    ]
    assert hashes[0] == hashes[2] != hashes[1]
    assert "ann" not in hashes


def test_a_parameter_is_dropped_where_the_configuration_says_so() -> None:
    model = translator(*GPT_5, drop_params=True)
    body = model.translate(CompletionRequest(model="m", messages=PLAIN_MESSAGES, temperature=0.2))
    assert "temperature" not in body.body


def test_every_message_of_a_plain_chat_is_sent_with_the_translated_parameters() -> None:
    gpt_5 = translator(*GPT_5)
    for text in ("one", "two"):
        turns = [{"role": "system", "content": "short"}, {"role": "user", "content": text}]
        request = CompletionRequest(model="m", messages=turns, max_tokens=100)
        assert gpt_5.translate(request).body == {
            "model": "gpt-5-mini",
            "messages": turns,
            "max_completion_tokens": 100,
        }


@pytest.mark.parametrize("target", [GROQ, VLLM, GPT_4O])
def test_max_tokens_keeps_its_name_where_the_provider_has_no_other(target: tuple[str, str]) -> None:
    body = translated(target, max_tokens=100).body
    assert (body["max_tokens"], "max_completion_tokens" in body) == (100, False)


@pytest.mark.parametrize("model", ["o3", "gpt-5", "gpt-5-mini-2025-08-07"])
def test_max_tokens_gets_the_name_that_a_reasoning_model_has(model: str) -> None:
    body = translated(("openai", model), max_tokens=100).body
    assert (body["max_completion_tokens"], "max_tokens" in body) == (100, False)


def test_a_developer_message_becomes_system_where_the_provider_has_no_other() -> None:
    turns = [{"role": "developer", "content": "short"}, {"role": "user", "content": "hello"}]
    assert translated(CLAUDE, *turns).body["system"] == [{"type": "text", "text": "short"}]
    assert translated(GPT_4O, *turns).body["messages"][0]["role"] == "system"
    assert translated(("openai", "o3"), *turns).body["messages"][0]["role"] == "developer"


def test_text_with_a_link_is_text() -> None:
    (content,) = contents(translated(CLAUDE, parts({"type": "text", "text": LINK})))
    assert [part["text"] for part in content] == [SECRET, LINK]


def test_documents_and_thinking_reach_anthropic_as_they_are() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "the whole text"}
    document = {"type": "document", "source": source, "title": "a title"}
    thinking = {"type": "thinking", "thinking": "well", "signature": "signed"}
    turns = [parts(document), parts(thinking, role="assistant"), parts()]
    asked, answered, _ = contents(translated(CLAUDE, *turns))
    assert asked[1] == document
    assert thinking in answered


def test_a_reasoning_effort_becomes_a_thinking_budget() -> None:
    body = translated(CLAUDE, reasoning_effort="low").body
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 1024}


def test_max_completion_tokens_and_stop_get_anthropics_names() -> None:
    params = translated(CLAUDE, max_completion_tokens=9, stop="end", temperature=0.5).body
    assert params["max_tokens"] == 9
    assert (params["stop_sequences"], params["temperature"]) == (["end"], 0.5)
    assert set(params) == {"model", "messages", "max_tokens", "stop_sequences", "temperature"}


def test_a_missing_token_limit_becomes_the_models_maximum() -> None:
    assert translated(CLAUDE).body["max_tokens"] == 64_000
    assert translated(("anthropic", "gpt-4o-mini")).body["max_tokens"] > 0


@pytest.mark.parametrize(
    ("target", "option"),
    [
        (CLAUDE, {"seed": 1}),
        (CLAUDE, {"n": 2}),
        (CLAUDE, {"logprobs": True}),
        (CLAUDE, {"top_logprobs": 3}),
        (CLAUDE, {"logit_bias": {"1": 1}}),
        (CLAUDE, {"presence_penalty": 0.1}),
        (CLAUDE, {"frequency_penalty": -1}),
        (CLAUDE, {"service_tier": "flex"}),
        (CLAUDE, {"response_format": {"type": "json_object"}}),
        (GPT_5, {"temperature": 0.2}),
        (GPT_5, {"stop": ["x"]}),
        (GPT_4O, {"reasoning_effort": "low"}),
        (GEMINI, {"logit_bias": {"1": 1}}),
        (GEMINI, {"tools": [tool("t")], "parallel_tool_calls": False}),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(
    target: tuple[str, str], option: dict[str, Any]
) -> None:
    error = refused(target, **option)
    assert list(option)[-1] in error
    assert "drop_params" not in error


@pytest.mark.parametrize("target", [CLAUDE, GEMINI, GPT_4O, GROQ, VLLM])
def test_a_parameter_with_its_default_value_is_accepted(target: tuple[str, str]) -> None:
    not_everywhere = {"tool_choice", "function_call", "verbosity", "stream"}
    names = DEFAULTS.keys() & CompletionRequest.model_fields.keys() - not_everywhere
    options = {name: DEFAULTS[name][0] for name in names}
    assert translated(target, tools=[tool("t")], **options).body


def test_a_message_part_that_would_be_left_out_is_refused() -> None:
    error = refused(CLAUDE, parts(AUDIO))
    assert error.startswith("messages: parts of type input_audio: not supported by anthropic")
    assert "inline_data" in str(translated(GEMINI, parts(AUDIO)).body)
    assert refused(CLAUDE, parts("text")).startswith("messages: ")
    assert "type document" in refused(GEMINI, parts({"type": "document", "source": {}}))


@pytest.mark.parametrize("target", [CLAUDE, GEMINI])
def test_a_turn_that_would_be_left_out_of_the_line_is_refused(target: tuple[str, str]) -> None:
    for field, value in {"refusal": SECRET, "audio": {"id": "a1"}}.items():
        turn = {"role": "assistant", "content": None, field: value}
        assert refused(target, turn, parts()).startswith(f"messages: {field}: not supported by")


@pytest.mark.parametrize(
    "image", ["http://inside.example/1.png", {"url": "http://inside.example/1.png"}]
)
def test_a_picture_that_litellm_would_download_is_refused(image: Any) -> None:
    error = refused(CLAUDE, parts({"type": "image_url", "image_url": image}))
    assert error == "messages: the provider does not fetch this address; send the data itself"


def test_an_error_does_not_repeat_the_conversation() -> None:
    orphan = {"role": "tool", "content": SECRET}
    assert refused(CLAUDE, orphan).startswith("messages: not supported by anthropic (")


def test_an_unsupported_type_of_tool_is_refused() -> None:
    error = refused(CLAUDE, tools=[{"type": "astrology"}])
    assert error.startswith("tools of type astrology: not supported by anthropic")


@pytest.mark.parametrize("target", [CLAUDE, GEMINI])
def test_a_tool_that_would_be_left_out_of_the_line_is_refused(target: tuple[str, str]) -> None:
    for tools in (parameters.ANY_TOOLS, parameters.ANY_TOOLS[1:]):
        error = refused(target, tools=tools)
        assert error.startswith("tools of type custom: not supported by")


def test_a_schema_names_the_beta_feature_that_it_needs() -> None:
    form = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    wanted = translated(CLAUDE, response_format={"type": "json_schema", "json_schema": form})
    assert any("structured-outputs" in beta for beta in wanted.betas)
    assert "json_mode" not in wanted.body
    assert translated(CLAUDE).betas == frozenset()


def test_a_model_that_only_has_responses_is_refused_for_chats() -> None:
    assert refused(("openai", "gpt-5-pro")) == "model: gpt-5-pro answers /v1/responses only"


def test_a_request_to_embed_is_sent_as_it_is() -> None:
    request = EmbeddingRequest(model="m", input=["a", "b"], dimensions=256)
    assert translator("openai", "text-embedding-3-small").translate(request) == TranslatedRequest(
        "/v1/embeddings",
        {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 256},
    )


def test_extra_body_reaches_servers_with_openais_api_as_it_is() -> None:
    for target in (GPT_4O, GPT_5, GROQ, VLLM):
        body = translated(target, extra_body=parameters.EXTRA_BODY).body
        assert body.items() >= parameters.EXTRA_BODY.items()


def test_extra_body_reaches_anthropic_as_its_own_parameters() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = translated(CLAUDE, max_tokens=2000, extra_body={"thinking": thinking, "top_k": 5}).body
    assert (body["thinking"], body["top_k"]) == (thinking, 5)
    assert "extra_body" not in body


def test_openais_metadata_reaches_openai_and_is_refused_elsewhere() -> None:
    own = {"provider_metadata": {"ticket": "T-1"}}
    assert translated(GPT_4O, **own).body["metadata"] == {"ticket": "T-1"}
    assert "metadata" in refused(CLAUDE, **own)


def test_a_parameter_that_litellm_would_leave_out_reaches_servers_with_openais_api() -> None:
    assert translated(VLLM, user="u-1").body["user"] == "u-1"


def test_web_search_without_options_is_in_the_line() -> None:
    (search,) = translated(CLAUDE, web_search_options={}).body["tools"]
    assert search["type"] == "web_search_20250305"
    assert "googleSearch" in str(translated(GEMINI, web_search_options={}).body)


@pytest.mark.parametrize("choice", parameters.OWN_TOOL_CHOICES, ids=lambda one: one["type"])
def test_a_tool_choice_that_litellm_does_not_know_is_in_the_line_or_refused(
    choice: dict[str, Any],
) -> None:
    for target in (GPT_4O, GPT_5, ("azure", "gpt-4o")):
        body = translated(target, tools=parameters.ANY_TOOLS, tool_choice=choice).body
        assert body["tool_choice"] == choice
    for target in (CLAUDE, GEMINI):
        error = refused(target, tools=[tool("t")], tool_choice=choice)
        assert error.startswith(f"tool_choice of type {choice['type']}: not supported by")


def test_each_stop_sequence_is_in_the_line() -> None:
    stop = ["a", "b", "c", "d", "e"]
    assert translated(CLAUDE, stop=stop).body["stop_sequences"] == stop
    assert translated(VLLM, stop=stop).body["stop"] == stop


def test_an_argument_of_litellm_is_no_parameter() -> None:
    assert "roles" in refused(CLAUDE, extra_body={"roles": {"user": 1}})


@pytest.mark.parametrize(
    ("target", "field"),
    [(GPT_4O, "safety_identifier"), (("azure", "gpt-4o"), "user"), (GROQ, "user")],
)
def test_an_end_user_is_in_the_line(target: tuple[str, str], field: str) -> None:
    privacy = Privacy(RequestPolicy(user_id="plain"), b"key")
    request = CompletionRequest(
        model="m", messages=[{"role": "user", "content": "x"}], user_id="ann"
    )
    assert translator(*target, privacy=privacy).translate(request).body[field] == "ann"
    claude = translator(*CLAUDE, privacy=privacy).translate(request).body
    assert claude["metadata"] == {"user_id": "ann"}
    salted = translator(*VLLM, privacy=privacy).translate(request).body
    assert salted["cache_salt"]


def test_embeddings_hand_on_extra_body_and_the_end_user() -> None:
    privacy = Privacy(RequestPolicy(user_id="plain"), b"key")
    extra: dict[str, Any] = {"input_type": "query"}
    request = EmbeddingRequest(model="m", input="x", user_id="ann", extra_body=extra)
    body = translator("openai", "e5", privacy=privacy).translate(request).body
    assert body == {"model": "e5", "input": "x", "user": "ann", **extra}


def test_headers_are_refused_on_the_batch_lane() -> None:
    assert "extra_headers" in refused(GPT_4O, extra_headers={"x-trace": "t"})


def test_litellm_logs_no_prompt_of_a_batch_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    import_module("workers.runtime.logs")  # as each worker does
    caplog.set_level("DEBUG")
    parts = [{"type": "text", "text": SECRET}]
    assert SECRET in str(translated(GROQ, {"role": "user", "content": parts}))
    assert SECRET not in caplog.text
