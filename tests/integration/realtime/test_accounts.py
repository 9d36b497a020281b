"""One realtime worker on a LiteLLM proxy's own file: what is sent to each kind of account."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import redis
import yaml
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from config.settings import ROOT
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, Fleet
from tests.support.account_stub import ACCESS_TOKEN, ANSWER, AccountStub, Sent
from tests.support.workers import StartWorker, Worker

PROXY_FILE = ROOT / "tests" / "data" / "litellm_proxy.yaml"
MESSAGES = [{"role": "user", "content": "Hello?"}]
AWS_KEY, AWS_SECRET = "AKIDOFTHETEST", "aws-secret-of-the-test"
TIMEOUT_SECONDS = 60.0


def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate(folder: Path) -> Path:
    """A self-signed certificate of localhost with its key, in one file."""
    key, now = private_key(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    path.write_bytes(pem(key) + signed.public_bytes(serialization.Encoding.PEM))
    return path


def service_account(url: str) -> str:
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "1",
            "private_key": pem(private_key()).decode(),
            "client_email": "fleet@my-project.example",
            "token_uri": f"{url}/google/token",
        }
    )


class Accounts:
    """The worker, its stub and its producer."""

    def __init__(self, stub: AccountStub, entra: AccountStub, worker: Worker, fleet: Fleet) -> None:
        self.stub, self.entra, self.worker, self._fleet = stub, entra, worker, fleet

    def ask(self, model: str, **fields: Any) -> tuple[Sent, Completion]:
        """Send one request; what the stub was sent for it, and the answer."""
        before = len(self.stub.requests)
        request = CompletionRequest(
            model=model, messages=MESSAGES, max_tokens=9, lane="realtime", **fields
        )
        completion = self._fleet.result(self._fleet.submit(request), timeout=TIMEOUT_SECONDS)
        sent = [one for one in self.stub.requests[before:] if not one.path.endswith("/token")]
        assert completion.text == ANSWER
        assert len(sent) == 1, sent
        return sent[0], completion

    def embed(self, model: str, value: str) -> Completion:
        """Embed one value."""
        request = EmbeddingRequest(model=model, input=value, lane="realtime")
        return self._fleet.result(self._fleet.submit(request), timeout=TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def accounts(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Accounts]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("accounts")
    # Without health checks, which a stub would take for the call of a test.
    routing = {"max_wait": 0, "health_checks": None}
    file = {"litellm_config": str(PROXY_FILE), "routing": routing}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(file))
    authority = certificate(folder)
    stub, entra = AccountStub(), AccountStub(authority)
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_CONFIG": str(folder / "fleet.yaml"),
        "AWS_ACCESS_KEY_ID": AWS_KEY,
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AZURE_AUTHORITY_HOST": entra.url,
        "REQUESTS_CA_BUNDLE": str(authority),
        "STUB_URL": stub.url,
        "STUB_OPENAI_BASE": f"{stub.url}/openai/v1",
        "STUB_OPENROUTER_BASE": f"{stub.url}/openrouter/v1",
        "STUB_VLLM_BASE": f"{stub.url}/vllm/v1",
        "STUB_VERTEX_BASE": f"{stub.url}/vertex",
        "STUB_VERTEX_CREDENTIALS": service_account(stub.url),
        "STUB_TENANT": "adfs",  # the tenant whose authority need not be Microsoft's own
        "STUB_CLIENT": "client",
        **{name: f"secret-of-{name}" for name in SECRETS},
    }
    with (
        stub.running(),
        entra.running(),
        start_worker("accounts", app="workers.realtime.app", env=env) as worker,
        Fleet(valkey_url) as fleet,
    ):
        yield Accounts(stub, entra, worker, fleet)


SECRETS = (
    "STUB_OPENAI_KEY",
    "STUB_AZURE_KEY",
    "STUB_CLIENT_SECRET",
    "STUB_AD_TOKEN",
    "STUB_ANTHROPIC_KEY",
    "STUB_OPENROUTER_KEY",
)
#: The provider in the receipt, where it is not the model's name.
PROVIDERS = {
    "azure-2024": "azure",
    "azure-2025": "azure",
    "azure-token": "azure",
    "claude": "anthropic",
    "ollama": "ollama_chat",
    "vllm": "hosted_vllm",
}


class Expected(NamedTuple):
    """What a provider is sent, besides the rest of the headers and of the body."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    query: Mapping[str, list[str]] = MappingProxyType({})


OPENAI_BODY = {"messages": MESSAGES, "max_tokens": 9}
ROWS = {
    "openai": Expected(
        "/openai/v1/chat/completions",
        {"authorization": "Bearer secret-of-STUB_OPENAI_KEY", "x-team": "blue"},
        {"model": "gpt-4o", **OPENAI_BODY},
    ),
    "azure-2024": Expected(
        "/openai/deployments/my-gpt/chat/completions",
        {"api-key": "secret-of-STUB_AZURE_KEY"},
        OPENAI_BODY,
        {"api-version": ["2024-06-01"]},
    ),
    "azure-2025": Expected(
        "/openai/deployments/my-gpt/chat/completions",
        {"api-key": "secret-of-STUB_AZURE_KEY"},
        OPENAI_BODY,
        {"api-version": ["2025-01-01-preview"]},
    ),
    "azure-token": Expected(
        "/openai/deployments/my-token/chat/completions",
        {"authorization": "Bearer secret-of-STUB_AD_TOKEN"},
        OPENAI_BODY,
        {"api-version": ["2024-06-01"]},
    ),
    "claude": Expected(
        "/v1/messages",
        {"x-api-key": "secret-of-STUB_ANTHROPIC_KEY"},
        {"model": "claude-sonnet-4-5", "max_tokens": 9},
    ),
    "openrouter": Expected(
        "/openrouter/v1/chat/completions",
        {"authorization": "Bearer secret-of-STUB_OPENROUTER_KEY"},
        {"model": "anthropic/claude-sonnet-4.5", "max_tokens": 9},
    ),
    "vllm": Expected("/vllm/v1/chat/completions", {}, {"model": "Qwen/Qwen3-8B", **OPENAI_BODY}),
    "ollama": Expected(
        "/api/chat", {}, {"model": "llama3", "messages": [{**MESSAGES[0], "images": []}]}
    ),
}


@pytest.mark.parametrize("model", ROWS)
def test_each_account_gets_its_address_its_credentials_and_its_body(
    accounts: Accounts, model: str
) -> None:
    sent, completion = accounts.ask(model)
    row = ROWS[model]
    assert (sent.method, sent.path, sent.query) == ("POST", row.path, row.query)
    assert {name: sent.headers.get(name) for name in row.headers} == row.headers
    assert {name: sent.body.get(name) for name in row.body} == row.body
    assert completion.receipt.provider == PROVIDERS.get(model, model)
    own = {value.split()[-1] for value in row.headers.values()}
    others = {f"secret-of-{name}" for name in SECRETS} - own
    assert not [secret for secret in others if secret in str(sent)]


def test_parameters_of_litellm_change_what_is_sent(accounts: Accounts) -> None:
    sent, _ = accounts.ask("dropped", seed=1, temperature=0.2, logit_bias={"5": 1})
    assert sent.body["max_completion_tokens"] == 9
    assert sent.body["logit_bias"] == {"5": 1}
    assert not sent.body.keys() & {"seed", "temperature", "max_tokens"}
    assert accounts.ask("ollama")[0].body["options"]["num_ctx"] == 8192


def test_a_picture_to_embed_costs_the_price_of_one_picture(accounts: Accounts) -> None:
    receipt = accounts.embed("pictures", f"data:image/png;base64,{'A' * 400_000}").receipt
    assert (receipt.cost_nanousd, receipt.usage.images, receipt.estimated) == (60_000, 1, False)


def test_bedrock_is_called_with_a_signature_of_the_environments_credentials(
    accounts: Accounts,
) -> None:
    sent, completion = accounts.ask("bedrock")
    assert sent.path == "/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    assert sent.body["messages"] == [{"role": "user", "content": [{"text": "Hello?"}]}]
    assert sent.body["inferenceConfig"] == {"maxTokens": 9}
    assert signature(sent, accounts.stub.url) == sent.headers["authorization"]
    assert f"Credential={AWS_KEY}/" in sent.headers["authorization"]
    assert "/eu-west-1/bedrock/aws4_request" in sent.headers["authorization"]
    assert completion.receipt.provider == "bedrock"


def signature(sent: Sent, url: str) -> str:
    """The signature that AWS computes for a request and compares with the one it was sent."""
    signed_names = sent.headers["authorization"].split("SignedHeaders=")[1].split(",")[0]
    headers = {name: sent.headers[name] for name in signed_names.split(";")}
    request = AWSRequest("POST", url + sent.path, headers=headers, data=sent.raw)
    request.context["timestamp"] = sent.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(AWS_KEY, AWS_SECRET), "bedrock", "eu-west-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    scope = signer.scope(request)
    signed = signer.signature(text, request)
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={signed_names}, Signature={signed}"


def test_azure_is_called_with_a_token_of_entra_id(accounts: Accounts) -> None:
    sent, completion = accounts.ask("azure-entra")
    assert sent.path == "/openai/deployments/my-entra/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {ACCESS_TOKEN}"
    assert "api-key" not in sent.headers
    wanted = accounts.entra.only("/token$").raw.decode()
    assert "client_id=client&" in wanted
    assert "client_secret=secret-of-STUB_CLIENT_SECRET" in wanted
    assert completion.receipt.provider == "azure"


def test_vertex_is_called_with_a_token_of_the_service_account(accounts: Accounts) -> None:
    sent, completion = accounts.ask("vertex")
    assert sent.path == "/vertex:generateContent"
    assert sent.headers["authorization"] == f"Bearer {ACCESS_TOKEN}"
    assert sent.body["contents"] == [{"role": "user", "parts": [{"text": "Hello?"}]}]
    assert sent.body["generationConfig"]["max_output_tokens"] == 9
    assert b"assertion=" in accounts.stub.only("/google/token$").raw
    assert completion.receipt.provider == "vertex_ai"


def test_an_alias_is_answered_by_its_model(accounts: Accounts) -> None:
    sent, completion = accounts.ask("fast")
    assert sent.body["model"] == "gpt-4o"
    assert completion.receipt.requested_model == "fast"
    assert (completion.receipt.fallbacks, completion.receipt.attempts) == (0, 1)


def test_settings_without_meaning_are_warnings_without_values(accounts: Accounts) -> None:
    log = accounts.worker.log.read_text()
    for name in (
        "router_settings.redis_host",
        "litellm_settings.callbacks",
        "general_settings.master_key",
        "general_settings.database_url",
    ):
        assert f"{name} has no meaning in the fleet" in log
    assert "sk-1234567890" not in log
    assert not [name for name in SECRETS if f"secret-of-{name}" in log]
