"""The file of a LiteLLM proxy as a part of fleet.yaml."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.fleet import FleetConfig, load
from config.inline_accounts import receipt_provider
from config.provider import call_params
from config.settings import ROOT
from primarch_fleet.errors import ConfigError

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def entry(name: str = "m", **params: Any) -> dict[str, Any]:
    """An entry of `model_list`: a server without a key."""
    own = {"model": "hosted_vllm/own", "api_base": "http://own.example/v1", **params}
    return {"model_name": name, "litellm_params": own, "model_info": PRICES}


@pytest.fixture(name="loaded")
def load_files(tmp_path: Path) -> Any:
    """`loaded({...the proxy's file...}, other keys of fleet.yaml)`"""

    def run(proxy: Any, **file: Any) -> FleetConfig:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(proxy))
        (tmp_path / "fleet.yaml").write_text(
            yaml.safe_dump({"litellm_config": "config.yaml", **file})
        )
        return load(tmp_path / "fleet.yaml")

    return run


def test_a_file_with_an_account_of_each_kind_is_served_as_it_stands(
    tmp_path: Path, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = yaml.safe_load((ROOT / "tests" / "data" / "litellm_proxy.yaml").read_text())
    with caplog.at_level(logging.WARNING):
        fleet = loaded(proxy)
    routing = fleet.routing
    assert [one.model for one in fleet.deployments] == [
        one["model_name"] for one in proxy["model_list"]
    ]
    assert {receipt_provider(name) for name in fleet.providers} == {
        *("openai", "azure", "anthropic", "bedrock", "vertex_ai", "openrouter"),
        *("ollama_chat", "hosted_vllm"),
    }
    assert (routing.routing_strategy, routing.num_retries) == ("usage-based-routing-v2", 0)
    assert (routing.timeout, routing.allowed_fails, routing.cooldown_time) == (120, 7, 3)
    assert routing.model_group_alias == {"fast": "openai"}
    assert routing.fallbacks["azure-2024"] == ["azure-2025"]
    assert routing.fallbacks["claude"] == ["openai"]
    assert routing.fallbacks["openai"] == []
    assert routing.router_settings == {
        "retry_policy": {"TimeoutErrorRetries": 1},
        "enable_pre_call_checks": False,
        "optional_pre_call_checks": ["responses_api_deployment_check"],
    }
    assert fleet.litellm_settings == {"modify_params": True}
    assert all(one.litellm_params.values()["drop_params"] is True for one in fleet.deployments)
    assert os.environ["AWS_SESSION_NAME_OF_NO_USE"] == "fleet"
    ignored = {record.args[1] for record in caplog.records if isinstance(record.args, tuple)}
    assert ignored == {
        "router_settings.redis_host",
        "litellm_settings.callbacks",
        "general_settings.master_key",
        "general_settings.database_url",
    }
    assert "sk-1234567890" not in caplog.text
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(fleet.model_dump(mode="json")))
    assert load(copy) == fleet


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ({"modellist": []}, "modellist: unknown to LiteLLM; did you mean model_list"),
        ({"router_settings": {"num_retry": 1}}, "router_settings.num_retry: unknown"),
        ({"litellm_settings": {"dropp_params": True}}, "dropp_params: .*did you mean drop_params"),
        ({"general_settings": {"masterkey": "x"}}, "general_settings.masterkey: unknown"),
        ({"model_list": [entry(api_bse="x")]}, r"model_list\.0\.litellm_params\.api_bse: unknown"),
        ({"model_list": [entry(rpm="many")]}, r"model_list\.0\.litellm_params\.rpm"),
        ({"model_list": [{"model_name": "m"}]}, r"model_list\.0\.litellm_params: missing"),
        ({"model_list": [entry(name="")]}, r"model_list\.0\.model_name: missing"),
        ({"model_list": [entry(litellm_credential_name="c")]}, "c is not in credential_list"),
        ({"model_list": {}}, "model_list: must be a list"),
        ({"router_settings": {"timeout": "os.environ/NOT_SET_HERE"}}, "NOT_SET_HERE is not set"),
        (
            {"model_list": [entry(name="os.environ/NOT_SET_HERE")]},
            r"model_list\.0\.model_name: NOT_SET_HERE is not set",
        ),
        (
            {"model_list": [entry(model="os.environ/NOT_SET_HERE")]},
            r"model_list\.0\.litellm_params\.model: NOT_SET_HERE is not set",
        ),
        (
            {"model_list": [entry(input_cost_per_token="cheap")]},
            r"model_list\.0\.litellm_params\.input_cost_per_token: must be a number",
        ),
        ({"include": ["gone.yaml"]}, r"gone\.yaml"),
        ({"include": "other.yaml"}, "include: must be a list"),
        ({"router_settings": {"fallbacks": [{"m": ["gone"]}]}}, "unknown model: gone, m"),
        ([], "it has no keys"),
    ],
)
def test_a_mistake_is_refused_with_the_file_and_the_name_and_without_the_value(
    loaded: Any, proxy: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        loaded(proxy)
    assert "config.yaml" in str(caught.value) or "routing" in words + str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_keys_of_fleet_yaml_override_those_of_the_proxy_file(loaded: Any) -> None:
    proxy = {
        "model_list": [
            {**entry(rpm=1), "model_info": {"id": "first", **PRICES}},
            entry("other"),
        ],
        "router_settings": {"num_retries": 5, "timeout": 7},
    }
    fleet = loaded(
        proxy,
        deployments=[{"id": "first", "max_output_tokens": 9, "litellm_params": {"rpm": 2}}],
        routing={"num_retries": 1},
    )
    first, other = fleet.deployments
    assert (first.model, first.upstream, first.max_output_tokens) == ("m", "own", 9)
    assert (first.litellm_params.rpm, other.model) == (2, "other")
    assert (fleet.routing.num_retries, fleet.routing.timeout) == (1, 7)


def test_settings_of_the_router_override_those_of_the_module(loaded: Any) -> None:
    module = {"num_retries": 5, "request_timeout": 6, "fallbacks": [{"a": ["b"]}]}
    proxy = {
        "model_list": [entry("a"), entry("b")],
        "litellm_settings": module,
        "router_settings": {"num_retries": 2},
    }
    routing = loaded(proxy).routing
    assert (routing.num_retries, routing.timeout) == (2, 6)
    assert routing.fallbacks == {"a": ["b"]}


def test_included_files_are_joined(tmp_path: Path, loaded: Any) -> None:
    (tmp_path / "more").mkdir()
    nested = {"model_list": [entry("b")], "include": ["again.yaml"]}
    (tmp_path / "more" / "models.yaml").write_text(yaml.safe_dump(nested))
    again = {"model_list": [entry("c")], "router_settings": {"num_retries": 4}}
    (tmp_path / "more" / "again.yaml").write_text(yaml.safe_dump(again))
    fleet = loaded({"model_list": [entry("a")], "include": ["more/models.yaml"]})
    assert [one.model for one in fleet.deployments] == ["a", "b", "c"]
    assert fleet.routing.num_retries == 4


def test_an_id_stays_the_same_and_tells_equal_entries_apart(loaded: Any) -> None:
    entries = [entry(), entry(rpm=3), entry()]
    first, second, third = (one.id for one in loaded({"model_list": entries}).deployments)
    assert third == f"{first}-2"
    assert first != second
    later = loaded({"model_list": [entry("new"), *entries]}).deployments
    assert [one.id for one in later[1:]] == [first, second, third]


def test_default_parameters_and_credentials_fill_in_what_an_entry_leaves_out(loaded: Any) -> None:
    credential = {
        "credential_name": "c",
        "credential_values": {"api_base": "http://shared.example/v1"},
    }
    proxy = {
        "model_list": [entry(litellm_credential_name="c", api_base=None, rpm=1), entry("plain")],
        "credential_list": [credential],
        "router_settings": {"default_litellm_params": {"rpm": 9, "timeout": 3}},
    }
    first, plain = (one.litellm_params for one in loaded(proxy).deployments)
    assert (first.rpm, first.timeout, plain.rpm, plain.timeout) == (1, 3, 9, 3)


def test_a_parameter_for_users_of_the_proxy_is_a_warning(
    loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = {"model_list": [{**entry(max_budget=5), "team": 3}]}
    with caplog.at_level(logging.WARNING):
        [served] = loaded(proxy).deployments
    assert "model_list.0.litellm_params.max_budget has no meaning" in caplog.text
    assert "model_list.0.team has no meaning" in caplog.text
    assert "max_budget" not in served.litellm_params.values()


def test_a_wildcard_is_one_model_of_the_price_list_after_the_other(loaded: Any) -> None:
    key = {"api_key": "os.environ/ANY", "rpm": 3}
    entries = [
        {"model_name": "anthropic/*", "litellm_params": {"model": "anthropic/*", **key}},
        {"model_name": "cheap-*", "litellm_params": {"model": "openai/gpt-4o-mini*", **key}},
        entry("anthropic/claude-sonnet-4-5"),
        {"model_name": "text-*", "litellm_params": {"model": "openai/text-embedding-3-*", **key}},
    ]
    fleet = loaded({"model_list": entries})
    served = {one.model: one for one in fleet.deployments}
    claude = served["anthropic/claude-haiku-4-5"]
    assert (claude.upstream, claude.litellm_params.rpm) == ("claude-haiku-4-5", 3)
    assert served["anthropic/claude-sonnet-4-5"].upstream == "own"
    assert served["cheap-"].upstream == "gpt-4o-mini"
    assert served["cheap--2024-07-18"].upstream == "gpt-4o-mini-2024-07-18"
    assert served["text-small"].kind == "embedding"
    assert len({one.id for one in fleet.deployments}) == len(fleet.deployments)
    assert {receipt_provider(one.provider) for one in fleet.deployments} == {
        *("anthropic", "openai", "hosted_vllm")
    }


@pytest.mark.parametrize("model", ["*", "openai/gpt-4o", "hosted_vllm/*", "openai/no-such-*"])
def test_a_wildcard_that_the_price_list_cannot_fill_is_refused(loaded: Any, model: str) -> None:
    wildcard = {"model_name": "any/*", "litellm_params": {"model": model}}
    with pytest.raises(ConfigError, match=r"model_list\.0\.model_name: any/\*.*for each model"):
        loaded({"model_list": [wildcard]})


def test_the_example_serves_the_models_of_its_proxy_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fleet = load(ROOT / "examples" / "litellm_proxy" / "fleet.yaml")
    served = [(deployment.model, deployment.batch) for deployment in fleet.deployments]
    assert sorted(served) == [("claude", False), ("gpt-4o-mini", False), ("gpt-4o-mini", True)]
    assert fleet.routing.fallbacks == {"claude": ["gpt-4o-mini"]}
    assert "general_settings.master_key" in caplog.text


def test_a_wildcard_with_one_model_is_each_name_that_producers_may_ask_for(loaded: Any) -> None:
    served = loaded({"model_list": [entry("claude-*"), entry("claude-opus-4-5")]}).deployments
    assert {one.upstream for one in served} == {"own"}
    names = [one.model for one in served]
    assert names.count("claude-opus-4-5") == 1
    assert {"claude-sonnet-4-5", "claude-haiku-4-5"} < set(names)


def test_a_secret_that_a_proxy_file_writes_out_is_used_and_shown_nowhere(
    loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = {
        "model_list": [
            entry("a", api_key="sk-hunter2-hunter2"),
            entry("b", api_key="sk-hunter2-hunter2"),
            entry("c", api_key=1234567),
            entry("d", api_key="none", extra_headers={"Authorization": "Bearer hunter2"}),
            entry("e", litellm_credential_name="shared", api_base=None),
        ],
        "credential_list": [
            {
                "credential_name": "shared",
                "credential_values": {
                    "api_key": "hunter2-shared",
                    "api_base": "http://user:hunter2@own.example",
                },
            }
        ],
        "general_settings": {"master_key": "sk-hunter2-master"},
    }
    with caplog.at_level(logging.WARNING):
        fleet = loaded(proxy)
    called = [
        call_params(fleet.providers[one.provider], one)["api_key"] for one in fleet.deployments
    ]
    assert called == ["sk-hunter2-hunter2"] * 2 + ["1234567", "none", "hunter2-shared"]
    assert fleet.deployments[0].provider == fleet.deployments[1].provider
    assert fleet.secrets() >= {*called, "Bearer hunter2", "http://user:hunter2@own.example"}
    for text in (repr(fleet), str(fleet.model_dump(mode="json")), caplog.text):
        assert "hunter2" not in text
    assert "model_list.2.litellm_params.api_key" in caplog.text
    assert "credential_list.0.credential_values.api_base" in caplog.text


def test_variables_of_a_proxy_file_are_set_before_its_values_are_read(
    monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    names = ("A_LIMIT_OF_A_PROXY", "A_PROXY_API_KEY", "A_PROXY_TIMEOUT")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    proxy = {
        "model_list": [entry(rpm="os.environ/A_LIMIT_OF_A_PROXY")],
        "router_settings": {"timeout": "os.environ/A_PROXY_TIMEOUT"},
        "environment_variables": dict(zip(names, (7, "hunter2-key", 9), strict=True)),
    }
    fleet = loaded(proxy)
    assert (fleet.deployments[0].litellm_params.rpm, fleet.routing.timeout) == (7, 9)
    assert os.environ["A_PROXY_API_KEY"] == "hunter2-key"
    assert "hunter2" not in str(fleet.model_dump(mode="json"))
    assert "hunter2-key" in fleet.secrets()


def test_names_and_prices_may_be_variables(monkeypatch: pytest.MonkeyPatch, loaded: Any) -> None:
    values = {
        "A_NAME": "served",
        "AN_ID": "first",
        "A_MODEL": "azure/mine",
        "A_BASE_MODEL": "azure/gpt-4o",
        "A_PRICE": "0.000003",
        "A_CREDENTIAL": "shared",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    one = entry(
        "os.environ/A_NAME",
        model="os.environ/A_MODEL",
        litellm_credential_name="os.environ/A_CREDENTIAL",
        input_cost_per_token="os.environ/A_PRICE",
    )
    one["model_info"] = {"id": "os.environ/AN_ID", "base_model": "os.environ/A_BASE_MODEL"}
    credential = {
        "credential_name": "os.environ/A_CREDENTIAL",
        "credential_values": {"api_key": "os.environ/A_KEY", "api_version": "2025-01-01"},
    }
    fleet = loaded({"model_list": [one], "credential_list": [credential]})
    [served] = fleet.deployments
    assert (served.id, served.model, served.upstream) == ("first", "served", "mine")
    account = fleet.providers[served.provider]
    assert account.litellm_provider == "azure"
    assert account.litellm_params.values()["api_key"] == "os.environ/A_KEY"
    base = fleet.rates(served).base
    assert (float(base.input), float(base.output)) == (3, 10)


def test_a_default_secret_stays_a_variable(loaded: Any) -> None:
    defaults = {"api_key": "os.environ/A_KEY", "timeout": 3}
    proxy = {
        "model_list": [entry()],
        "router_settings": {"default_litellm_params": defaults},
    }
    [account] = loaded(proxy).providers.values()
    assert account.litellm_params.values()["api_key"] == "os.environ/A_KEY"


@pytest.mark.parametrize("where", ["model_info", "litellm_params"])
@pytest.mark.parametrize(
    "nulls",
    [
        {"input_cost_per_token": None},
        {"input_cost_per_token": None, "output_cost_per_token": None},
        {"cache_read_input_token_cost": None, "mode": None},
    ],
)
def test_a_price_that_is_null_is_the_one_of_the_list(
    loaded: Any, where: str, nulls: dict[str, None]
) -> None:
    params = {"model": "openai/gpt-4o", "api_key": "none"}
    plain: dict[str, Any] = {"model_name": "m", "litellm_params": params}
    nulls = {name: nulls[name] for name in nulls if where == "model_info" or "cost" in name}
    entries = [plain, {**plain, where: {**plain.get(where, {}), **nulls}}]
    fleet = loaded({"model_list": entries})
    listed, served = fleet.deployments
    assert fleet.rates(served) == fleet.rates(listed)
    assert not fleet.rates(served).is_zero
    assert served.kind == "chat"


def test_limits_beside_the_parameters_count_as_in_litellm(loaded: Any) -> None:
    proxy = {"model_list": [{**entry(rpm=1), "rpm": 9, "tpm": 3}]}
    [served] = loaded(proxy).deployments
    assert (served.litellm_params.rpm, served.litellm_params.tpm) == (1, 3)


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ("whisper-1", "audio_transcription"),
        ("openai/dall-e-3", "image_generation"),
        ("cohere/rerank-english-v3.0", "rerank"),
        ("openai/own", "realtime"),
    ],
)
def test_a_model_of_a_kind_that_the_fleet_does_not_serve_is_a_warning(
    loaded: Any, caplog: pytest.LogCaptureFixture, model: str, mode: str
) -> None:
    other = {"model_name": "other", "litellm_params": {"model": model, "api_key": "none"}}
    proxy = {
        "model_list": [entry("a"), {**other, "model_info": {"mode": mode}}],
        "litellm_settings": {"fallbacks": [{"other": ["a"]}, {"a": ["other"]}]},
    }
    with caplog.at_level(logging.WARNING):
        fleet = loaded(proxy)
    assert [one.model for one in fleet.deployments] == ["a"]
    assert fleet.routing.fallbacks == {"a": []}
    assert f"model_list.1 (other, {mode}) has no meaning" in caplog.text


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8080/v1", "http://10.0.0.2/v1", "http://ollama/v1", "http://a.internal"],
)
def test_a_server_at_a_private_address_without_a_price_is_free_and_said_to_be(
    loaded: Any, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    params = {"model": "openai/granite", "api_base": address, "api_key": "none"}
    with caplog.at_level(logging.WARNING):
        fleet = loaded({"model_list": [{"model_name": "m", "litellm_params": params}]})
    assert fleet.rates(fleet.deployments[0]).is_zero
    assert "model_list.0 (m) has no price and a private address" in caplog.text


def test_all_models_without_a_price_are_named_at_once(loaded: Any) -> None:
    params = {"api_base": "https://gateway.example.com", "api_key": "none"}
    entries = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", **params}}
        for name in ("one", "two")
    ]
    with pytest.raises(ConfigError, match=r"openai/one, .*openai/two, .*input_cost_per_token"):
        loaded({"model_list": entries})


def test_a_server_of_embeddings_that_the_price_list_lacks_is_known_by_its_name(
    loaded: Any,
) -> None:
    params = {"model": "ollama/nomic-embed-text", "api_base": "http://ollama:11434"}
    [served] = loaded({"model_list": [{"model_name": "m", "litellm_params": params}]}).deployments
    assert served.kind == "embedding"


def test_a_star_in_a_table_of_fallbacks_is_every_model(loaded: Any) -> None:
    proxy = {
        "model_list": [entry("a"), entry("b"), entry("c")],
        "router_settings": {
            "fallbacks": [{"*": ["c"]}, {"b": ["a"]}],
            "context_window_fallbacks": [{"*": ["b"]}],
        },
    }
    routing = loaded(proxy).routing
    assert routing.fallbacks == {"a": ["c"], "b": ["a"], "c": []}
    assert routing.context_window_fallbacks == {"a": ["b"], "b": [], "c": ["b"]}


@pytest.mark.parametrize("settings", ["litellm_settings", "router_settings"])
def test_settings_of_the_router_may_stand_among_those_of_the_module(
    loaded: Any, settings: str
) -> None:
    fleet = loaded({"model_list": [entry()], settings: {"cooldown_time": 7}})
    assert fleet.routing.cooldown_time == 7


@pytest.mark.parametrize(
    "settings",
    [
        {"litellm_settings": {"telemetry": False, "langfuse_secret_key": "hunter2-langfuse"}},
        {"general_settings": {"drop_params": True, "embedding_model": "m"}},
        {"router_settings": {"json_logs": True}},
    ],
)
def test_a_setting_of_litellms_documentation_is_a_warning_wherever_it_stands(
    loaded: Any, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded({"model_list": [entry()], **settings})
    [(section, names)] = settings.items()
    assert all(f"{section}.{name} has no meaning" in caplog.text for name in names)
    assert "hunter2" not in caplog.text


def test_an_alias_stands_before_a_name_that_a_wildcard_has(loaded: Any) -> None:
    wildcard = {"model_name": "*", "litellm_params": {"model": "openai/*", "api_key": "none"}}
    proxy = {
        "model_list": [entry("own"), wildcard],
        "router_settings": {"model_group_alias": {"gpt-4o": "own"}},
    }
    fleet = loaded(proxy)
    assert fleet.routing.resolve_alias("gpt-4o") == "own"
    assert "gpt-4o" not in {one.model for one in fleet.deployments}
