"""Accounts as LiteLLM has them: any of its parameters, and no secret in the file."""

import re
from decimal import Decimal
from operator import itemgetter
from typing import Any

import pytest
import yaml

from config.fleet import FleetConfig, load
from config.inline_accounts import receipt_provider, split_model
from config.litellm_params import is_secret
from config.provider import Provider, call_params
from config.settings import ROOT
from primarch_fleet.errors import ConfigError
from workers.onebox.simulated import missing_secrets

PRICE = {"input": "1", "output": "2"}
AZURE = {"model": "azure/my-gpt", "api_base": "https://eu.example", "api_version": "2024-10-21"}


def config(*deployments: dict[str, Any], **providers: dict[str, Any]) -> FleetConfig:
    entries = [
        {"id": f"d{number}", "model": "m", "price": PRICE, **one}
        for number, one in enumerate(deployments)
    ]
    return FleetConfig.model_validate({"providers": providers, "deployments": entries})


def sent(config: FleetConfig, index: int = 0) -> dict[str, Any]:
    """What LiteLLM is given for a deployment."""
    deployment = config.deployments[index]
    return call_params(config.providers[deployment.provider], deployment)


def test_an_account_without_a_key_has_litellms_parameters() -> None:
    account = {"litellm_provider": "bedrock", "litellm_params": {"aws_region_name": "eu-west-1"}}
    served = {"provider": "aws", "upstream": "anthropic.claude-sonnet-4"}
    assert sent(config(served, aws=account)) == {
        "model": "bedrock/anthropic.claude-sonnet-4",
        "aws_region_name": "eu-west-1",
    }


def test_parameters_of_a_deployment_override_those_of_its_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    monkeypatch.setenv("THE_TEAM", "blue")
    account = {
        "litellm_provider": "azure",
        "api_key": "os.environ/THE_KEY",
        "api_base": "https://eu.example",
        "litellm_params": {"api_version": "2024-06-01", "drop_params": True},
    }
    own = {"api_version": "preview", "extra_headers": {"x-team": "os.environ/THE_TEAM"}, "rpm": 3}
    served = {"provider": "az", "upstream": "my-gpt", "litellm_params": own}
    assert sent(config(served, az=account)) == {
        "model": "azure/my-gpt",
        "api_key": "sk-secret",
        "api_base": "https://eu.example",
        "api_version": "preview",
        "drop_params": True,
        "extra_headers": {"x-team": "blue"},
        "rpm": 3,
    }


def test_a_variable_that_is_named_and_not_set_is_an_error_with_its_name() -> None:
    inline = {"litellm_params": {**AZURE, "api_key": "os.environ/NOT_SET_HERE"}}
    with pytest.raises(ConfigError, match=r"providers\.azure#\w+: NOT_SET_HERE is not set"):
        sent(config(inline))
    nested = {"litellm_params": {**AZURE, "extra_body": {"a": ["os.environ/NOT_SET_HERE"]}}}
    with pytest.raises(ConfigError, match=r"deployments\.d0: NOT_SET_HERE is not set"):
        sent(config(nested))


@pytest.mark.parametrize(
    "params",
    [
        {"api_key": "hunter2hunter2"},
        {"aws_secret_access_key": "hunter2hunter2"},
        {"client_secret": "hunter2hunter2"},
        {"azure_ad_token": "hunter2hunter2"},
        {"vertex_credentials": '{"private_key": "hunter2hunter2"}'},
        {"vertex_credentials": {"private_key": "hunter2hunter2"}},
        {"extra_headers": {"Authorization": "Bearer hunter2hunter2"}},
        {"extra_headers": {"X-Api-Key": "hunter2hunter2"}},
        {"extra_body": {"auth": [{"password": "hunter2hunter2"}]}},
        {"api_base": "https://me:hunter2hunter2@there.example"},
    ],
)
@pytest.mark.parametrize("place", ["account", "deployment", "inline"])
def test_a_secret_that_is_written_out_is_refused_without_its_value(
    params: dict[str, Any], place: str
) -> None:
    account: dict[str, Any] = {"litellm_provider": "azure"}
    served: dict[str, Any] = {"provider": "one", "upstream": "u"}
    if place == "account":
        account["litellm_params"] = params
    elif place == "deployment":
        served["litellm_params"] = params
    else:
        served = {"litellm_params": {"model": "azure/u", **params}}
    with pytest.raises(ValueError, match=rf"{next(iter(params))}.*os\.environ/NAME") as caught:
        config(served, one=account)
    assert "hunter2" not in str(caught.value)


def test_what_only_looks_like_a_secret_may_be_written_out() -> None:
    params = {
        "vertex_credentials": "/secrets/account.json",
        "aws_web_identity_token": "oidc/google/https://example.com",
        "max_tokens": 5,
        "prompt_cache_key": "greeting",
        "api_base": "http://there.example:8000/v1",
    }
    own = config({"litellm_params": {"model": "vertex_ai/gemini-2.5-pro", **params}})
    assert sent(own) == {"model": "vertex_ai/gemini-2.5-pro", **params}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"api_bse": "https://x.example"}, "api_bse: unknown to LiteLLM; did you mean api_base"),
        ({"quite_unheard_of": 1}, "quite_unheard_of: .*extra_body"),
        ({"max_budget": 1}, "max_budget: has no meaning here"),
        ({"messages": []}, "messages: each request brings its own"),
        ({"rpm": "many"}, "rpm"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused_by_name(
    params: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config({"litellm_params": {**AZURE, **params}})


def test_a_parameter_of_deployments_is_refused_in_an_account() -> None:
    with pytest.raises(ValueError, match="order: write it in each deployment"):
        Provider.model_validate({"litellm_provider": "ollama", "litellm_params": {"order": 1}})


def test_a_provider_that_litellm_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"opnai; did you mean openai"):
        Provider(litellm_provider="opnai")
    with pytest.raises(ValueError, match="auto_router: not supported"):
        config({"litellm_params": {"model": "auto_router/best"}})


def test_the_old_name_of_the_parameters_means_the_same() -> None:
    served = {"provider": "one", "upstream": "u"}
    account = {"litellm_provider": "ollama"}
    old, new = (config({**served, name: {"order": 2}}, one=account) for name in PARAMS_NAMES)
    assert old == new
    with pytest.raises(ValueError, match="params: another name of litellm_params"):
        config({**served, "params": {}, "litellm_params": {}}, one=account)


PARAMS_NAMES = ("params", "litellm_params")


def test_deployments_with_their_own_account_share_it_if_its_parameters_are_equal() -> None:
    eu, us = AZURE, {**AZURE, "api_base": "https://us.example"}
    fleet = config(*({"litellm_params": params} for params in (eu, {**eu, "rpm": 1}, us)))
    first, second, third = (deployment.provider for deployment in fleet.deployments)
    assert first == second != third
    assert {receipt_provider(name) for name in fleet.providers} == {"azure"}
    assert config({"litellm_params": us}).deployments[0].provider == third
    assert fleet.deployments[1].litellm_params.rpm == 1
    assert fleet.providers[third].base_url() == "https://us.example"


def test_a_price_and_a_kind_may_be_written_as_litellm_does() -> None:
    params = {"model": "openai/e", "input_cost_per_token": 2e-8}
    info = {"mode": "embedding", "base_model": "text-embedding-3-small"}
    entry = {"id": "e", "model": "e", "litellm_params": params, "model_info": info}
    fleet = FleetConfig.model_validate({"deployments": [entry]})
    [served] = fleet.deployments
    assert (served.kind, fleet.rates(served).base.input) == ("embedding", Decimal("0.02"))


def test_own_prices_replace_the_lists_on_their_side() -> None:
    """gpt-4o costs 2.50 for input, 1.25 cached and 10.00 for output."""
    own = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token_priority": 2e-5,
        "input_cost_per_token_priority": 3e-6,
    }
    served = {"id": "a", "model": "a", "litellm_params": {"model": "openai/gpt-4o", **own}}
    cached = {**served, "id": "b", "model_info": {"cache_read_input_token_cost": 5e-7}}
    free = {**served, "id": "c", "model_info": {"output_cost_per_token": 0}}
    free["litellm_params"] = {"model": "openai/gpt-4o", "input_cost_per_token": 0}
    fleet = FleetConfig.model_validate({"deployments": [served, cached, free]})
    rates, with_cached, without = map(fleet.rates, fleet.deployments)
    assert (rates.base.input, rates.base.output) == (Decimal(1), Decimal(10))
    assert rates.base.rate("cached_input") == 1
    [priority] = rates.tiers["priority"]
    assert (priority.input, priority.output) == (Decimal(3), Decimal(20))
    assert with_cached.base.rate("cached_input") == Decimal("0.5")
    assert without.is_zero


@pytest.mark.parametrize(
    ("model", "custom", "expected"),
    [
        ("azure/my-gpt", None, ("azure", "my-gpt")),
        ("openrouter/anthropic/claude", None, ("openrouter", "anthropic/claude")),
        ("bedrock/converse/nova-pro-v1:0", None, ("bedrock", "converse/nova-pro-v1:0")),
        ("gpt-4o", None, ("openai", "gpt-4o")),
        ("claude-sonnet-4-5-20250929", None, ("anthropic", "claude-sonnet-4-5-20250929")),
        ("my-own", "hosted_vllm", ("hosted_vllm", "my-own")),
        ("azure/my-gpt", "azure", ("azure", "my-gpt")),
        ("meta/llama", "hosted_vllm", ("hosted_vllm", "meta/llama")),
    ],
)
def test_the_provider_is_in_the_model_or_known_by_it(
    model: str, custom: str | None, expected: tuple[str, str]
) -> None:
    assert split_model(model, custom) == expected


def test_a_model_without_a_known_provider_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"0\.litellm_params\.model: .*<provider>/my-own"):
        config({"litellm_params": {"model": "my-own"}})


def test_all_secrets_of_accounts_and_of_the_environment_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("A_NAME", "B_NAME", "C_NAME", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"value-of-{name}")
    params = {
        **AZURE,
        "client_secret": "os.environ/A_NAME",
        "extra_headers": {"Ocp-Apim-Subscription-Key": "os.environ/B_NAME"},
        "vertex_credentials": "os.environ/C_NAME",
    }
    secrets = config({"litellm_params": params}).secrets()
    named = {f"value-of-{name}" for name in ("A_NAME", "B_NAME", "C_NAME")}
    assert secrets >= named | {"value-of-AWS_SECRET_ACCESS_KEY"}
    assert "https://eu.example" not in secrets


def test_only_the_account_whose_secret_is_not_set_is_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    fleet = config(
        {"litellm_params": {"model": "openai/a", "api_key": "os.environ/OPENAI_API_KEY"}},
        {"litellm_params": {"model": "anthropic/b", "api_key": "os.environ/ANTHROPIC_API_KEY"}},
        {"litellm_params": {"model": "bedrock/c"}},
    )
    [missing] = missing_secrets(fleet)
    assert receipt_provider(missing) == "anthropic"
    assert missing_secrets(fleet)[missing] == ["ANTHROPIC_API_KEY"]


def test_a_provider_that_needs_a_key_has_one_or_the_environment_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GROQ_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    fleet = config({"litellm_params": {"model": "groq/m"}})
    [account] = fleet.providers
    with pytest.raises(ConfigError, match=f"providers.{account}: api_key: missing; .*GROQ_API_KEY"):
        sent(fleet)
    assert missing_secrets(fleet) == {account: ["GROQ_API_KEY"]}
    monkeypatch.setenv("GROQ_API_KEY", "gsk-secret")
    assert sent(fleet) == {"model": "groq/m"}
    assert missing_secrets(fleet) == {}
    assert fleet.providers[account].key() == "gsk-secret"
    federated = {"model": "openai/m", "openai_identity_token_file": "/run/token"}
    assert missing_secrets(config({"litellm_params": federated})) == {}


@pytest.mark.parametrize(
    ("model", "words", "variable"),
    [
        ("nvidia_nim/m", "or set NVIDIA_NIM_API_KEY", "NVIDIA_NIM_API_KEY"),
        ("azure_ai/m", "or set AZURE_AI_API_KEY", "AZURE_API_KEY"),
        ("azure_ai/m", "or set AZURE_AI_API_KEY", "AZURE_CLIENT_ID"),
        ("xinference/m", "write os.environ/NAME$", None),
    ],
)
def test_a_key_that_litellm_would_replace_by_openai_s_is_missing_at_the_start(
    monkeypatch: pytest.MonkeyPatch, model: str, words: str, variable: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    fleet = config({"litellm_params": {"model": model}})
    with pytest.raises(ConfigError, match=f"api_key: missing; .*{words}"):
        sent(fleet)
    if variable:
        monkeypatch.setenv(variable, "secret")
        assert sent(fleet) == {"model": model}


def test_azure_needs_no_key_for_a_machines_identity_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_API_KEY", raising=False)
    assert sent(config({"litellm_params": AZURE})) == AZURE


def test_xinference_s_embeddings_need_no_key() -> None:
    served = {"kind": "embedding", "litellm_params": {"model": "xinference/m"}}
    assert sent(config(served)) == {"model": "xinference/m"}


def test_a_configuration_with_its_own_accounts_can_be_dumped_and_loaded() -> None:
    fleet = config({"litellm_params": {**AZURE, "drop_params": True, "tags": ["a"]}})
    assert FleetConfig.model_validate(fleet.model_dump(mode="json")) == fleet


def test_an_alias_is_offered_and_served_as_its_model() -> None:
    data = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    data["routing"]["model_group_alias"] = {"fast": {"model": "gpt-4o-mini", "hidden": True}}
    fleet = FleetConfig.model_validate(data)
    models = fleet.catalogue().models
    assert models["fast"].lanes == models["gpt-4o-mini"].lanes
    assert fleet.deployments_of("fast") == fleet.deployments_of("gpt-4o-mini")
    assert fleet.batch_deployment("fast").id == "openai-gpt-4o-mini"
    assert fleet.routing.possible_models("fast") == {"gpt-4o-mini"}
    for alias, words in ({"a": "gone"}, "gone"), ({"gpt-4o": "gpt-4o-mini"}, "gpt-4o"):
        data["routing"]["model_group_alias"] = alias
        with pytest.raises(ValueError, match=f"model_group_alias.*{words}"):
            FleetConfig.model_validate(data)


def test_the_shipped_file_needs_its_own_key_only() -> None:
    [account] = load(ROOT / "config" / "fleet.yaml").providers.values()
    assert account.litellm_params.values() == {}
    assert is_secret("api_key")


PAGE = (ROOT / "docs" / "accounts.md").read_text()
#: The rows of the table of accounts that name a model: each parameter is in backticks.
ROWS = [re.findall(r"`(\w+: [^`]+)`", row) for row in re.findall(r"^\|.*`model: .*$", PAGE, re.M)]


@pytest.mark.parametrize("row", ROWS, ids=itemgetter(0))
def test_an_account_of_the_documentation_is_valid(row: list[str]) -> None:
    params = {name: value for text in row for name, value in yaml.safe_load(text).items()}
    [served] = config({"litellm_params": params}).deployments
    assert params["model"].endswith(f"/{served.upstream}")


def test_the_examples_of_the_documentation_are_valid() -> None:
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
    complete = [one for one in examples if "litellm_params" in str(one)]
    assert [len(FleetConfig.model_validate(one).deployments) for one in complete] == [1, 1]
    assert len(ROWS) >= 8


def test_a_date_or_a_number_that_litellm_needs_as_text_is_text() -> None:
    text = "{model: azure/my-gpt, api_base: https://x, api_version: 2024-10-21, tenant_id: 42}"
    served = sent(config({"litellm_params": yaml.safe_load(text)}))
    assert (served["api_version"], served["tenant_id"]) == ("2024-10-21", "42")


def test_a_secret_in_digits_without_quotes_is_a_secret() -> None:
    with pytest.raises(ValueError, match=r"api_key: a secret") as caught:
        config({"litellm_params": {**AZURE, "api_key": 1234567}})
    assert "1234567" not in str(caught.value)
