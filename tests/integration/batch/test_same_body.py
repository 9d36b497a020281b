"""A batch line has the body that the realtime lane sends for the same request."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest
from primarch_fleet.errors import FleetError
from scheduler.providers.translator import Translator, Untranslatable
from tasks.privacy import Privacy
from tests.support.provider_stub import ProviderStub, provider_stub
from tests.support.realtime_fixture import METADATA, realtime_server

#: Models by name in the fleet: LiteLLM's provider, its name of the model, the path of the address.
MODELS = {
    "gpt": ("openai", "gpt-4o", "/v1"),
    "reasoner": ("openai", "gpt-5-mini", "/v1"),
    "thinker": ("openai", "o3", "/v1"),
    "vllm": ("hosted_vllm", "Qwen3-8B", "/v1"),
    "groq": ("groq", "llama-3.3-70b-versatile", "/v1"),
    "claude": ("anthropic", "claude-sonnet-4-5", ""),
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "function",
    "function": {"name": "t", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"name": "city", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
CALL = {"id": "c-1", "type": "function", "function": {"name": "t", "arguments": "{}"}}
NOT_STREAMED = ("stream", False)
HELLO: dict[str, Any] = {"role": "user", "content": "hello"}


def parts(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "see"}, *content]}]


#: Requests by what is special in them.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 100},
    "sampling": {"temperature": 0.5, "top_p": 0.9, "stop": ["x"]},
    "end user": {"user_id": "ann", "max_completion_tokens": 9},
    "developer": {"messages": [{"role": "developer", "content": "be brief"}, HELLO]},
    "system": {"messages": [{"role": "system", "content": "be brief"}, HELLO]},
    "link": {"messages": parts({"type": "text", "text": '<a href="http://example.com/">x</a>'})},
    "picture": {"messages": parts({"type": "image_url", "image_url": {"url": PIXEL}})},
    "tools": {"tools": [TOOL], "tool_choice": "required"},
    "tool result": {
        "tools": [TOOL],
        "messages": [
            HELLO,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c-1", "content": "12"},
        ],
    },
    "schema": {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    "effort": {"reasoning_effort": "low"},
    "own parameter": {"extra_body": {"top_k": 3}},
    "cached prompt": {
        "messages": parts({"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}})
    },
    "seed": {"seed": 7},
}


def config() -> FleetConfig:
    def account(name: str) -> dict[str, str]:
        provider, _, path = MODELS[name]
        base = f"os.environ/TEST_STUB{path.replace('/', '_')}"
        return {
            "litellm_provider": provider,
            "api_key": "os.environ/TEST_STUB_KEY",
            "api_base": base,
        }

    return FleetConfig.model_validate(
        {
            "providers": {name: account(name) for name in MODELS},
            "deployments": [
                {
                    "id": name,
                    "model": name,
                    "provider": name,
                    "upstream": MODELS[name][1],
                    "price": {"input": "1", "output": "1"},
                    "max_output_tokens": 1000,
                }
                for name in MODELS
            ],
            "routing": {"num_retries": 0, "max_wait": 0},
        }
    )


async def realtime_bodies(
    url: str, stub: ProviderStub, requests: dict[tuple[str, str], CompletionRequest]
) -> dict[tuple[str, str], Any]:
    """What the provider got for each request on the realtime lane; None for a refusal."""
    bodies: dict[tuple[str, str], Any] = {}
    async with realtime_server(config(), url) as server:
        for key, request in requests.items():
            stub.calls.clear()
            try:
                await server.serve(request, METADATA)
                body = stub.calls[-1].body
                # LiteLLM says to some servers that it does not stream, which is the default.
                bodies[key] = {
                    name: body[name] for name in body if (name, body[name]) != NOT_STREAMED
                }
            except FleetError:
                bodies[key] = None
    return bodies


def batch_body(request: CompletionRequest, privacy: Privacy) -> Any:
    """The body of the batch line; None for a refusal."""
    fleet = config()
    (deployment,) = fleet.deployments_of(request.model)
    translator = Translator(deployment, fleet.providers[deployment.provider], privacy)
    try:
        return translator.translate(request).body
    except Untranslatable:
        return None


@pytest.mark.usefixtures("store")
def test_a_batch_line_has_the_body_that_the_realtime_lane_sends(valkey_url: str) -> None:
    requests = {
        (model, shape): CompletionRequest(**{"model": model, "messages": [HELLO], **fields})
        for model in MODELS
        for shape, fields in SHAPES.items()
    }
    with provider_stub() as stub:
        os.environ |= {"TEST_STUB": stub.url, "TEST_STUB_v1": f"{stub.url}/v1"}
        os.environ |= {"TEST_STUB_KEY": "sk-test"}
        sent = asyncio.run(realtime_bodies(valkey_url, stub, requests))
        privacy = Privacy.connect(config().requests, valkey_url)
        lines = {key: batch_body(request, privacy) for key, request in requests.items()}
    for key, line in lines.items():
        assert (key, line) == (key, sent[key])
    assert sum(body is not None for body in sent.values()) > len(sent) * 0.8
