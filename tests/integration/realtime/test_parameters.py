"""Each parameter reaches the provider as it was sent, or is refused by its name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest, EmbeddingRequest, ResponsesRequest
from primarch_fleet.errors import FleetError
from primarch_fleet.requests import Request
from tests.support import parameters
from tests.support.provider_stub import ProviderStub, provider_stub
from tests.support.realtime_fixture import METADATA, realtime_server

#: Models by name in the fleet: LiteLLM's provider, its name of the model, the path of the address.
MODELS = {
    "gpt": ("openai", "gpt-4o", "/v1"),
    "reasoner": ("openai", "gpt-5-mini", "/v1"),
    "vllm": ("hosted_vllm", "Qwen3-8B", "/v1"),
    "claude": ("anthropic", "claude-sonnet-4-5", ""),
    "tolerant": ("anthropic", "claude-sonnet-4-5", ""),
    "gemini": ("gemini", "gemini-2.5-flash", ""),
    "azure": ("azure", "gpt-4o", ""),
    "pro": ("openai", "gpt-5-pro", "/v1"),
    "search": ("openai", "gpt-4o-search-preview", "/v1"),
    "openrouter": ("openrouter", "anthropic/claude-sonnet-4.5", "/v1"),
    "mistral": ("mistral", "mistral-large-latest", "/v1"),
    "groq": ("groq", "llama-3.1-8b-instant", "/v1"),
    "xai": ("xai", "grok-4", "/v1"),
    "deepseek": ("deepseek", "deepseek-chat", "/v1"),
    "ollama": ("ollama_chat", "llama3", ""),
    "vectors": ("openai", "Qwen3-Embedding", "/v1"),
    "vllm-vectors": ("hosted_vllm", "e5", "/v1"),
    "studio-vectors": ("lm_studio", "nomic-embed", "/v1"),
    "llamafile-vectors": ("llamafile", "nomic-embed", "/v1"),
    "router-vectors": ("hostinger_router", "nomic-embed", "/v1"),
    "fireworks-vectors": ("fireworks_ai", "nomic-embed", "/v1"),
    "nim-vectors": ("nvidia_nim", "nv-embedqa-e5-v5", "/v1"),
}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(name="stub", scope="module")
def open_stub() -> Iterator[ProviderStub]:
    with provider_stub() as stub:
        for path in ("", "/v1"):
            os.environ[f"TEST_STUB{path.replace('/', '_')}"] = stub.url + path
        os.environ["TEST_STUB_KEY"] = "sk-test"
        yield stub


def config(**sections: Any) -> FleetConfig:
    def account(name: str) -> dict[str, Any]:
        provider, _, path = MODELS[name]
        return {
            "litellm_provider": provider,
            "api_key": "os.environ/TEST_STUB_KEY",
            "api_base": f"os.environ/TEST_STUB{path.replace('/', '_')}",
            "litellm_params": {"api_version": "2025-04-01-preview"} if provider == "azure" else {},
        }

    def deployment(name: str) -> dict[str, Any]:
        kind = "embedding" if "vectors" in name else "responses" if name == "pro" else "chat"
        model = {"id": name, "model": name, "provider": name, "upstream": MODELS[name][1]}
        params = {"drop_params": True} if name == "tolerant" else {}
        price = {"input": "1", "output": "1"}
        return {**model, "kind": kind, "price": price, "litellm_params": params}

    return FleetConfig.model_validate(
        {
            "providers": {name: account(name) for name in MODELS},
            "deployments": [deployment(name) for name in MODELS],
            "routing": {"num_retries": 0, "max_wait": 0},
            **sections,
        }
    )


class Lane:
    """The realtime lane in this process, in front of a stub."""

    def __init__(self, url: str, stub: ProviderStub) -> None:
        self._url, self._stub = url, stub

    def bodies(self, *requests: Request, **sections: Any) -> list[dict[str, Any]]:
        """What the provider got for each request."""
        assert self.errors(*requests, **sections) == []
        return self._stub.bodies()

    def errors(self, *requests: Request, **sections: Any) -> list[FleetError]:
        """The errors of the requests; the others are answered."""

        async def run() -> list[FleetError]:
            errors = []
            async with realtime_server(config(**sections), self._url) as server:
                for request in requests:
                    try:
                        await server.serve(request, METADATA)
                    except FleetError as error:
                        errors.append(error)
            return errors

        self._stub.calls.clear()
        return asyncio.run(run())

    def headers(self, request: Request, **sections: Any) -> dict[str, str]:
        assert self.errors(request, **sections) == []
        return self._stub.calls[-1].headers


@pytest.fixture(name="lane")
def open_lane(stub: ProviderStub, store: redis.Redis, valkey_url: str) -> Lane:
    return Lane(valkey_url, stub)


def chat(model: str, **fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"model": model, "messages": HELLO, **fields})


def embed(model: str, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(model=model, input="hello", **fields)


#: Parameters that mean nothing alone, with those that they need.
NEEDS = {
    "tool_choice": {"tools": parameters.CHAT["tools"]},
    "parallel_tool_calls": {"tools": parameters.CHAT["tools"]},
}
#: Parameters of the SDK that LiteLLM knows gpt-4o to refuse; and those that change the transport.
NOT_FOR_GPT_4O = {"verbosity", "reasoning_effort", "stream", "stream_options"}


def each(model: str, values: dict[str, Any], skip: Sequence[str] | set[str] = ()) -> list[Request]:
    return [
        chat(model, **NEEDS.get(name, {}), **{name: value})
        for name, value in values.items()
        if name not in skip
    ]


def test_each_parameter_of_the_sdk_reaches_openai(lane: Lane) -> None:
    requests = each("gpt", parameters.CHAT, NOT_FOR_GPT_4O)
    expected = [{**request.body(), "model": "gpt-4o"} for request in requests]
    assert lane.bodies(*requests) == expected


def test_parameters_of_reasoning_models_reach_openai(lane: Lane) -> None:
    requests = each(
        "reasoner", {name: parameters.CHAT[name] for name in ("verbosity", "reasoning_effort")}
    )
    assert lane.bodies(*requests) == [{**r.body(), "model": "gpt-5-mini"} for r in requests]


def test_each_parameter_of_engines_and_providers_reaches_servers_with_openai_s_api(
    lane: Lane,
) -> None:
    for model in ("gpt", "vllm"):
        requests = [
            chat(model, extra_body={name: value}) for name, value in parameters.EXTRA_BODY.items()
        ]
        sent = lane.bodies(*requests)
        for body, (name, value) in zip(sent, parameters.EXTRA_BODY.items(), strict=True):
            assert body[name] == value


def test_what_litellm_would_drop_reaches_a_vllm_server(lane: Lane) -> None:
    """LiteLLM leaves out `user`, and turns `thinking` into something else."""
    (body,) = lane.bodies(
        chat("vllm", user="u-1", extra_body={"thinking": {"type": "enabled", "budget_tokens": 9}})
    )
    assert body["user"] == "u-1"
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 9}


def test_each_stop_sequence_reaches_the_provider(lane: Lane) -> None:
    stop = ["a", "b", "c", "d", "e"]
    vllm, claude = lane.bodies(*(chat(model, stop=stop) for model in ("vllm", "claude")))
    assert vllm["stop"] == claude["stop_sequences"] == stop


def test_extra_body_reaches_claude_as_its_own_parameters(lane: Lane) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    extra = {"thinking": thinking, "top_k": 5, "cache_control": {"type": "ephemeral"}}
    (body,) = lane.bodies(chat("claude", extra_body=extra, max_tokens=2000))
    assert {name: body[name] for name in extra} == extra
    assert "extra_body" not in body


def test_extra_body_reaches_gemini_in_its_own_places(lane: Lane) -> None:
    settings = parameters.PROVIDER["safety_settings"]
    (body,) = lane.bodies(chat("gemini", extra_body={"top_k": 5, "safety_settings": settings}))
    assert body["generationConfig"]["top_k"] == 5
    assert body["safetySettings"] == settings


SUMMARIZED = {"effort": "low", "summary": "detailed"}
BERLIN = {"type": "approximate", "approximate": {"country": "DE", "city": "Berlin"}}


@pytest.mark.parametrize(
    ("model", "fields", "names"),
    [
        ("claude", {"response_format": {"type": "json_object"}}, ["response_format"]),
        ("claude", {"seed": 3}, ["seed"]),
        ("claude", {"provider_metadata": {"a": "b"}}, ["provider_metadata"]),
        ("claude", {"extra_body": {"roles": {}}}, ["extra_body.roles"]),
        ("gemini", {"user": "u-1"}, ["user"]),
        ("gemini", {"extra_body": {"min_p": 0.1, "top_k": 5}}, ["min_p"]),
        ("gemini", {"moderation": {"model": "m"}, "temperature": 0.5}, ["moderation"]),
        ("gpt", {"verbosity": "low"}, ["verbosity"]),
        *(
            (model, {"reasoning_effort": SUMMARIZED}, ["reasoning_effort.summary: not supported"])
            for model in ("claude", "gemini", "reasoner")
        ),
        (
            "gemini",
            {"web_search_options": {"search_context_size": "high", "user_location": BERLIN}},
            ["web_search_options.search_context_size, web_search_options.user_location"],
        ),
    ],
    ids=str,
)
def test_what_a_provider_cannot_do_is_refused_by_name_and_not_sent(
    lane: Lane, stub: ProviderStub, model: str, fields: dict[str, Any], names: list[str]
) -> None:
    (error,) = lane.errors(chat(model, **fields))
    assert all(name in str(error) for name in names), error
    assert not error.retryable
    assert stub.calls == []


FUNCTION, CUSTOM = parameters.ANY_TOOLS
GOOGLE: dict[str, Any] = {"googleSearch": {}}
BESIDE = " beside the other tools"


@pytest.mark.parametrize(
    ("model", "fields", "refused"),
    [
        ("gemini", {"tools": [CUSTOM]}, "tools of type custom"),
        ("gemini", {"tools": [FUNCTION, CUSTOM]}, "tools of type custom"),
        ("gemini", {"tools": [FUNCTION, GOOGLE]}, f"tools of type googleSearch{BESIDE}"),
        (
            "gemini",
            {"tools": [FUNCTION], "web_search_options": {}},
            f"web_search_options{BESIDE}",
        ),
        ("gemini", {"tools": [{"type": "mcp", "server_label": "a"}]}, "tools of type mcp"),
        ("claude", {"tools": [CUSTOM]}, "tools of type custom"),
        (
            "claude",
            {"tools": [FUNCTION, CUSTOM], "tool_choice": "required"},
            "tools of type custom",
        ),
    ],
    ids=str,
)
def test_a_tool_that_would_be_left_out_is_refused_by_its_type(
    lane: Lane, stub: ProviderStub, model: str, fields: dict[str, Any], refused: str
) -> None:
    (error,) = lane.errors(chat(model, **fields))
    assert str(error).startswith(f"litellm.UnsupportedParamsError: {refused}: not supported by")
    assert not error.retryable
    assert stub.calls == []


def test_tools_that_a_provider_has_are_sent_together(lane: Lane) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    claude, options, google, gpt, vllm, deepseek = lane.bodies(
        chat("claude", tools=[FUNCTION, search]),
        chat("claude", tools=[FUNCTION], web_search_options={}),
        chat("gemini", tools=[GOOGLE]),
        chat("gpt", tools=parameters.ANY_TOOLS),
        chat("vllm", tools=parameters.ANY_TOOLS, tool_choice=CUSTOM),
        chat("deepseek", tools=parameters.ANY_TOOLS, tool_choice="required"),
    )
    for body in (claude, options):
        assert [tool["name"] for tool in body["tools"]] == ["look", "web_search"]
    assert google["tools"] == [GOOGLE]
    assert gpt["tools"] == deepseek["tools"] == parameters.ANY_TOOLS
    assert deepseek["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in vllm["tools"]] == ["look", "write"]
    assert vllm["tool_choice"] == {"type": "function", "function": {"name": "write"}}


RESPONSE_FUNCTION = parameters.RESPONSE["tools"][0]
SEARCH = {"type": "web_search"}


def respond(model: str, *tools: dict[str, Any], **fields: Any) -> ResponsesRequest:
    return ResponsesRequest(model=model, input="hello", tools=tools, **fields)


@pytest.mark.parametrize(
    ("model", "kind", "beside"),
    [
        *(
            (model, "image_generation", "")
            for model in ("claude", "gemini", "deepseek", "groq", "ollama")
        ),
        *((model, "code_interpreter", "") for model in ("claude", "gemini", "mistral")),
        *((model, "mcp", "") for model in ("gemini", "deepseek", "groq", "ollama")),
        *((model, "web_search", "") for model in ("groq", "mistral", "ollama")),
        ("gemini", "web_search", BESIDE),
        ("claude", "file_search", ""),
        ("claude", "astrology", ""),
    ],
)
def test_a_tool_of_a_response_that_a_chat_does_not_have_is_refused_by_its_type(
    lane: Lane, stub: ProviderStub, model: str, kind: str, beside: str
) -> None:
    tools = [{"type": kind}, *([RESPONSE_FUNCTION] if beside else [])]
    for request in (respond(model, *tools), respond(model, RESPONSE_FUNCTION, *tools)):
        (error,) = lane.errors(request)
        assert f"tools of type {kind}{beside}: not supported by" in str(error)
        assert not error.retryable
    assert stub.calls == []


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        ("claude", SEARCH),
        ("claude", "required"),
        ("gemini", {"type": "allowed_tools", "mode": "auto", "tools": []}),
    ],
    ids=str,
)
def test_a_choice_of_a_tool_that_a_chat_does_not_have_is_refused_by_name(
    lane: Lane, stub: ProviderStub, model: str, choice: Any
) -> None:
    (error,) = lane.errors(respond(model, SEARCH, tool_choice=choice))
    assert "tool_choice: not supported by" in str(error)
    assert stub.calls == []


def test_tools_of_a_response_that_a_chat_has_are_sent(lane: Lane) -> None:
    custom = {"type": "custom", "name": "write"}
    server = {"type": "mcp", "server_label": "a", "server_url": "https://a.example/mcp"}
    own = {"type": "bash_20250124", "name": "bash"}
    both, bash, mcp, google, groq = lane.bodies(
        respond("claude", RESPONSE_FUNCTION, SEARCH),
        respond("claude", own),
        respond("claude", server),
        respond("gemini", SEARCH),
        respond("groq", RESPONSE_FUNCTION, custom, tool_choice={"type": "custom", "name": "write"}),
    )
    assert [tool["name"] for tool in both["tools"]] == ["look", "web_search"]
    assert bash["tools"] == [own]
    assert [one["name"] for one in mcp["mcp_servers"]] == ["a"]
    assert google["tools"] == [GOOGLE]
    assert [tool["function"]["name"] for tool in groq["tools"]] == ["look", "write"]
    assert groq["tool_choice"]["function"] == {"name": "write"}


def test_web_search_without_options_is_sent(lane: Lane) -> None:
    models = ("claude", "gemini", "openrouter", "search")
    claude, gemini, *openai = lane.bodies(*(chat(m, web_search_options={}) for m in models))
    assert [tool["type"] for tool in claude["tools"]] == ["web_search_20250305"]
    assert gemini["tools"] == [{"googleSearch": {}}]
    assert [body["web_search_options"] for body in openai] == [{}, {}]


def test_options_that_a_provider_has_are_sent(lane: Lane) -> None:
    search = {"search_context_size": "high", "user_location": BERLIN}
    claude, thinking, gemini = lane.bodies(
        chat("claude", web_search_options=search),
        chat("claude", reasoning_effort={"effort": "low"}),
        chat("gemini", web_search_options={"search_context_size": "medium"}),
    )
    assert claude["tools"][0]["user_location"]["city"] == "Berlin"
    assert thinking["thinking"]["budget_tokens"] == 1024
    assert gemini["tools"] == [GOOGLE]


def test_web_search_without_options_is_refused_by_name_where_there_is_none(
    lane: Lane, stub: ProviderStub
) -> None:
    (error,) = lane.errors(chat("mistral", web_search_options={}))
    assert "web_search_options" in str(error)
    assert not error.retryable
    assert stub.calls == []


@pytest.mark.parametrize("choice", parameters.OWN_TOOL_CHOICES, ids=lambda one: one["type"])
def test_a_tool_choice_of_openai_s_api_reaches_servers_that_speak_it(
    lane: Lane, choice: dict[str, Any]
) -> None:
    models = ("gpt", "azure") if choice == CUSTOM else ("gpt", "azure", "vllm")
    bodies = lane.bodies(*(chat(m, tools=parameters.ANY_TOOLS, tool_choice=choice) for m in models))
    assert [body["tool_choice"] for body in bodies] == [choice] * len(models)


@pytest.mark.parametrize("model", ["claude", "gemini", "pro"])
def test_a_tool_choice_that_litellm_does_not_know_is_refused_by_its_type(
    lane: Lane, stub: ProviderStub, model: str
) -> None:
    for choice in parameters.OWN_TOOL_CHOICES:
        (error,) = lane.errors(chat(model, tools=parameters.CHAT["tools"], tool_choice=choice))
        assert f"tool_choice of type {choice['type']}: not supported by" in str(error)
        assert not error.retryable
    assert stub.calls == []


AUDIO = {"type": "input_audio", "input_audio": {"data": "UklGRiQAAABXQVZF", "format": "wav"}}


def test_a_deployment_with_drop_params_drops_what_its_provider_cannot_do(lane: Lane) -> None:
    json_object = {"type": "json_object"}
    (body,) = lane.bodies(chat("tolerant", seed=3, response_format=json_object, max_tokens=9))
    assert body.keys() == {"model", "messages", "max_tokens"}


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("role", "part"),
    [("user", AUDIO), ("system", PICTURE), ("user", {"type": "video_url", "video_url": {}})],
    ids=["audio", "picture of the system", "video"],
)
def test_a_part_of_a_message_that_claude_cannot_read_is_refused_by_name(
    lane: Lane, stub: ProviderStub, role: str, part: dict[str, Any]
) -> None:
    message = {"role": role, "content": [{"type": "text", "text": "What is this?"}, part]}
    (error,) = lane.errors(chat("claude", messages=[message, *HELLO]))
    assert f"messages: parts of type {part['type']}: not supported by anthropic" in str(error)
    assert stub.calls == []


IMAGE = {"type": "input_image", "file_id": "file-1"}
FILE = {"type": "input_file", "file_id": "file-1"}


@pytest.mark.parametrize(
    ("model", "part", "kind"),
    [
        ("claude", {**AUDIO}, "input_audio"),
        ("gemini", IMAGE, "input_image with file_id"),
        ("ollama", FILE, "input_file with file_id"),
    ],
    ids=str,
)
def test_a_part_of_a_response_that_a_chat_would_lose_is_refused_by_its_type(
    lane: Lane, stub: ProviderStub, model: str, part: dict[str, Any], kind: str
) -> None:
    content = [{"type": "input_text", "text": "What is this?"}, part]
    request = ResponsesRequest(model=model, input=[{"role": "user", "content": content}])
    (error,) = lane.errors(request)
    assert f"input: parts of type {kind}: not supported by" in str(error)
    assert stub.calls == []


@pytest.mark.parametrize("kind", ["code_interpreter_call", "mcp_call", "image_generation_call"])
def test_an_item_of_a_response_that_a_chat_would_lose_is_refused_by_its_type(
    lane: Lane, stub: ProviderStub, kind: str
) -> None:
    items = [*HELLO, {"type": kind, "id": "i_1", "status": "completed"}]
    (error,) = lane.errors(ResponsesRequest(model="claude", input=items))
    assert f"input: items of type {kind}: not supported by anthropic" in str(error)
    assert stub.calls == []


def test_items_and_parts_of_a_response_that_a_chat_has_are_sent(lane: Lane) -> None:
    text = {"type": "input_text", "text": "What is this?"}
    picture = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    said = {"type": "refusal", "refusal": "I cannot"}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [text, picture, FILE]},
        {"type": "message", "role": "assistant", "content": [said]},
        {"type": "custom_tool_call", "call_id": "c", "name": "write", "input": "a"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "b"},
    ]
    (claude,) = lane.bodies(ResponsesRequest(model="claude", input=items))
    asked, answered, _ = claude["messages"]
    assert [part["type"] for part in asked["content"]] == ["text", "image", "container_upload"]
    assert [part["type"] for part in answered["content"]] == ["text", "tool_use"]


REFUSED = {"role": "assistant", "content": None, "refusal": "I cannot"}
SPOKEN = {"role": "assistant", "audio": {"id": "audio_1"}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}],
}
IN_PLACE_OF_CONTENT = [
    (REFUSED, "refusal"),
    (SPOKEN, "audio"),
    (CALLED, "tool_calls of type custom"),
]


@pytest.mark.parametrize("model", ["claude", "gemini", "mistral", "ollama"])
@pytest.mark.parametrize(("message", "field"), IN_PLACE_OF_CONTENT)
def test_a_turn_of_the_assistant_that_would_be_left_out_is_refused_by_name(
    lane: Lane, stub: ProviderStub, model: str, message: dict[str, Any], field: str
) -> None:
    (error,) = lane.errors(chat(model, messages=[*HELLO, message, *HELLO]))
    assert f"messages: {field}: not supported by" in str(error)
    assert not error.retryable
    assert stub.calls == []


def test_a_refusal_and_a_spoken_turn_are_sent_where_the_provider_has_them(lane: Lane) -> None:
    said = {"role": "assistant", "content": "hi", "refusal": None, "audio": None}
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}]}
    gpt, claude, groq = lane.bodies(
        chat("gpt", messages=[*HELLO, REFUSED, SPOKEN, CALLED, *HELLO]),
        chat("claude", messages=[*HELLO, said, *HELLO]),
        chat("groq", messages=[*HELLO, part, *HELLO]),
    )
    assert groq["messages"][1] == part
    refused, spoken = gpt["messages"][1:3]
    assert (refused["refusal"], spoken["audio"]) == ("I cannot", {"id": "audio_1"})
    assert len(claude["messages"]) == 3


def test_a_file_that_has_only_an_id_is_refused_where_it_would_be_left_out(
    lane: Lane, stub: ProviderStub
) -> None:
    part = {"type": "file", "file": {"file_id": "file-1"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]
    (error,) = lane.errors(chat("ollama", messages=messages))
    assert "messages: parts of type file with file_id: not supported by ollama_chat" in str(error)
    assert stub.calls == []
    (sent,) = lane.bodies(chat("gpt", messages=messages))
    assert sent["messages"] == messages


@pytest.mark.parametrize("model", ["claude", "gemini", "ollama"])
def test_a_reference_to_a_stored_item_is_refused_where_nothing_is_stored(
    lane: Lane, stub: ProviderStub, model: str
) -> None:
    for reference in ({"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}):
        items = [*HELLO, reference]
        (error,) = lane.errors(ResponsesRequest(model=model, input=items))
        assert "input: items of type item_reference: not supported by" in str(error)
    assert stub.calls == []


def test_parts_that_a_provider_reads_are_sent(lane: Lane) -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "?"}, PICTURE]
    claude, gpt = lane.bodies(
        chat("claude", messages=[{"role": "user", "content": parts}]),
        chat("gpt", messages=[{"role": "user", "content": [*parts, AUDIO]}]),
    )
    assert claude["messages"][0]["content"][1]["type"] == "image"
    assert gpt["messages"][0]["content"] == [*parts, AUDIO]


def test_values_that_a_provider_takes_for_granted_are_accepted(lane: Lane) -> None:
    (body,) = lane.bodies(chat("claude", n=1, store=False, max_tokens=64_000, temperature=1.0))
    assert body["max_tokens"] == 64_000


#: What clients send of their own accord.
DEFAULTS: dict[str, Any] = {
    **{"temperature": 1, "top_p": 1, "n": 1, "stream": False, "frequency_penalty": 0},
    **{"presence_penalty": 0, "logit_bias": {}, "logprobs": False, "store": False},
    **{"service_tier": "auto", "verbosity": "medium", "parallel_tool_calls": True},
}


def test_defaults_that_litellm_refuses_are_left_out_and_others_reach_servers(lane: Lane) -> None:
    reasoner, xai, vllm, floats = lane.bodies(
        *(chat(model, **DEFAULTS) for model in ("reasoner", "xai", "vllm")),
        embed("fireworks-vectors", encoding_format="float"),
    )
    assert reasoner.keys().isdisjoint({"top_p", "presence_penalty", "logprobs"})
    assert (reasoner["temperature"], reasoner["verbosity"]) == (1, "medium")
    assert "frequency_penalty" not in xai
    # Else the server would take the model's own: its generation_config.json.
    assert {name: vllm[name] for name in ("temperature", "top_p")} == {"temperature": 1, "top_p": 1}
    assert "encoding_format" not in floats


def test_an_end_user_reaches_openrouter(lane: Lane) -> None:
    own, hashed = lane.bodies(chat("openrouter", user="u-1"), chat("openrouter", user_id="ann"))
    assert own["user"] == "u-1"
    assert len(hashed["user"]) == 64


def test_embeddings_hand_on_dimensions_users_and_extra_body(lane: Lane) -> None:
    fields: dict[str, Any] = {"dimensions": 256, "user": "u-1"}
    servers = ("vectors", "vllm-vectors", "studio-vectors", "llamafile-vectors", "router-vectors")
    requests = [
        *(embed(one, **fields, extra_body=parameters.EMBEDDING_EXTRA_BODY) for one in servers),
        embed("nim-vectors", extra_body=parameters.EMBEDDING_EXTRA_BODY),
    ]
    *bodies, nim = lane.bodies(*requests)
    for body in bodies:
        assert {name: body[name] for name in fields} == fields
    for body in (*bodies, nim):
        assert body["input_type"] == "query"
        assert body["truncate"] == "END"
        assert "extra_body" not in body


def test_an_end_user_s_id_reaches_the_provider_as_the_policy_says(lane: Lane) -> None:
    requests = [
        chat("gpt", user_id="ann"),
        chat("claude", user_id="ann"),
        embed("vectors", user_id="ann"),
    ]
    gpt, claude, vectors = lane.bodies(*requests)
    hashed = gpt["safety_identifier"]
    assert "ann" not in hashed
    assert len(hashed) == 64
    assert claude["metadata"]["user_id"] == hashed
    assert vectors["user"] == hashed
    (other,) = lane.bodies(chat("gpt", user_id="ann", tenant_id="other"))
    assert other["safety_identifier"] != hashed
    (plain,) = lane.bodies(requests[0], requests={"user_id": "plain"})
    assert plain["safety_identifier"] == "ann"
    (omitted,) = lane.bodies(requests[0], requests={"user_id": "omitted"})
    assert omitted.keys() == {"model", "messages"}


def test_an_end_user_that_the_request_names_itself_is_sent_as_it_is(lane: Lane) -> None:
    (body,) = lane.bodies(chat("gpt", user_id="ann", safety_identifier="own"))
    assert body["safety_identifier"] == "own"


def test_tenants_have_their_own_prefix_caches_on_a_vllm_server(lane: Lane) -> None:
    def salts(**sections: Any) -> list[str | None]:
        salted = {"cache_salt": "own"}
        requests = [
            chat("vllm", tenant_id="a"),
            chat("vllm", tenant_id="b"),
            chat("vllm", tenant_id="a"),
            chat("vllm", tenant_id="a", extra_body=salted),
            chat("vllm", tenant_id="b", extra_body=salted),
        ]
        return [body.get("cache_salt") for body in lane.bodies(*requests, **sections)]

    a, b, again, own_a, own_b = salts()
    assert a == again
    assert len({a, b, own_a, own_b}) == 4
    a, b, _, own_a, own_b = salts(requests={"share_prefix_cache": True})
    assert a is b is None
    assert own_a == own_b


def test_headers_reach_the_provider_if_fleet_yaml_allows_them(
    lane: Lane, stub: ProviderStub
) -> None:
    allowed = {"extra_headers": ["X-Trace"]}
    request = chat("gpt", extra_headers={"x-trace": "t-1"})
    headers = lane.headers(request, requests=allowed)
    assert headers["x-trace"] == "t-1"
    assert headers["authorization"] == "Bearer sk-test"
    (error,) = lane.errors(request)
    assert "x-trace" in str(error)
    assert "t-1" not in str(error)
    assert stub.calls == []
