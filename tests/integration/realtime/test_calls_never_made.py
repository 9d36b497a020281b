"""What the realtime lane does with a failure before the call: whose fault it is decides."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ServiceRequestError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from config.fleet import FleetConfig
from primarch_fleet import errors
from tests.support.realtime_fixture import Ask, ask_server, chat, deployment, open_provider
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator
from workers.realtime.errors import translate

__all__ = ["ask_server", "open_provider"]  # fixtures

BROKEN_TOOL = [{"type": "function"}]
PRICE = {"input": "1", "output": "1"}
BEDROCK = "bedrock/anthropic.claude-3-haiku-20240307-v1:0"
VERTEX = {
    "model": "vertex_ai/gemini-2.5-flash",
    "vertex_project": "p",
    "vertex_location": "us-central1",
}


def fleet(account: dict[str, Any], **routing: Any) -> FleetConfig:
    """`big` at this account, and `small` at the simulator, which answers for it."""
    big = {"id": "big-1", "model": "big", "price": PRICE, "litellm_params": account}
    simulated = {
        "litellm_provider": "openai",
        "api_key": "os.environ/TEST_KEY",
        "api_base": "os.environ/TEST_BASE",
    }
    return FleetConfig.model_validate(
        {
            "providers": {"simulated": simulated},
            "deployments": [big, deployment("small-1")],
            "routing": {
                "fallbacks": {"big": ["small"]},
                "num_retries": 2,
                "max_wait": 0,
                **routing,
            },
        }
    )


def claude(base: str) -> dict[str, Any]:
    return {
        "model": "anthropic/claude-sonnet-4-5",
        "api_key": "os.environ/TEST_KEY",
        "api_base": base,
    }


@pytest.fixture(name="closed")
def address_without_server() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_litellm_cannot_translate_is_at_fault_itself(
    ask: Ask, simulator: Simulator, stream: bool
) -> None:
    config = fleet(claude(simulator.url))
    with pytest.raises(errors.ProviderError, match=r"cannot translate .*'function'") as caught:
        ask(chat(tools=BROKEN_TOOL, stream=stream), config=config)
    assert type(caught.value) is errors.ProviderError
    assert not caught.value.retryable
    assert simulator.requests() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"])
@pytest.mark.parametrize("base", ["closed", "http://provider.invalid"])
def test_a_provider_that_cannot_be_reached_is_unavailable(
    ask: Ask, closed: str, model: str, base: str, stream: bool
) -> None:
    account = {**claude(closed if base == "closed" else base), "model": model}
    with pytest.raises(errors.ProviderUnavailable) as caught:
        ask(chat(stream=stream), config=fleet(account, fallbacks={}, num_retries=0))
    assert caught.value.retryable
    [answer] = ask(chat(stream=stream), config=fleet(account))
    assert answer.receipt.fallback_reason == "big-1: provider_unavailable"


@pytest.mark.parametrize("cause", [ConnectionRefusedError(), ServiceRequestError("refused")])
def test_a_sign_in_that_cannot_reach_the_provider_is_its_fault(cause: Exception) -> None:
    """Azure's library raises errors of its own, which LiteLLM passes on without a status."""
    error = RuntimeError("Authentication failed: the connection broke")
    error.__cause__ = cause
    assert type(translate(error)) is errors.ProviderUnavailable
    assert type(translate(RuntimeError("AADSTS7000215: bad"))) is errors.AuthenticationFailed


def test_an_answer_that_litellm_cannot_read_is_the_providers_fault(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.script(Script(model="claude-sonnet-4-5", body={}))
    [answer] = ask(chat(), config=fleet(claude(simulator.url.removesuffix("/v1"))))
    assert answer.receipt.fallback_reason == "big-1: provider_unavailable"
    assert simulator.stats()["calls"]["other"] == {"200": 3}


@pytest.mark.parametrize(
    "account",
    [
        {"model": BEDROCK, "aws_region_name": "us-east-1", "aws_profile_name": "missing"},
        {**VERTEX, "vertex_credentials": "/missing.json"},
        VERTEX,
    ],
)
def test_credentials_that_cannot_be_used_pause_the_account(
    ask: Ask, account: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no search for a metadata server
    [answer] = ask(chat(), config=fleet(account))
    assert answer.receipt.fallback_reason == "big-1: authentication_failed"


def test_a_revoked_key_pauses_the_account(ask: Ask, tmp_path: Path, sign_in: str) -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "k",
        "private_key": key.decode(),
        "client_email": "fleet@p.example",
        "client_id": "1",
        "token_uri": sign_in,
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    vertex = {**VERTEX, "vertex_credentials": str(tmp_path / "account.json")}
    [answer] = ask(chat(), config=fleet(vertex))
    assert answer.receipt.fallback_reason == "big-1: authentication_failed"


@pytest.fixture(name="sign_in")
def token_address() -> Iterator[str]:
    """Google's address for tokens, where each key is revoked."""

    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(HTTPStatus.BAD_REQUEST)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()
