"""fleet.yaml and FLEET_*: errors name the key, and no secret is shown."""

import json
import os
import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.fleet import FleetConfig, load
from config.settings import ROOT, Settings, settings
from primarch_fleet import CompletionRequest, Rates
from primarch_fleet.catalogue import Catalogue, LaneLimits, Limits
from primarch_fleet.errors import ConfigError, UnknownModel
from primarch_fleet.prices import TokenRates, max_cost_nanousd
from primarch_fleet.routing import route
from primarch_fleet.usage import Usage

SHIPPED = ROOT / "config" / "fleet.yaml"


def changed(tmp_path: Path, *path: str | int, value: Any) -> Path:
    """The shipped file with one value replaced."""
    data = yaml.safe_load(SHIPPED.read_text())
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            ("deployments", 0, "upstream"),
            "gpt-x",
            "deployments.0.price.input: missing.*openai/gpt-x",
        ),
        (("deployments", 0, "price"), {"input": "-1"}, "deployments.0.price.input"),
        (("deployments", 0, "provider"), "nobody", "unknown provider: nobody"),
        (("deployments", 0, "id"), "openai-gpt-4o-mini", "id used twice: openai-gpt-4o-mini"),
        (("deployments", 0, "waight"), 3, "deployments.0.waight"),
        (("routing", "fallbacks"), {"gpt-4o": ["gpt-9"]}, "unknown model: gpt-9"),
        (("routing", "routing_strategy"), "luck", "routing.routing_strategy"),
        (("providers", "openai", "api_key"), "sk-plain-text", "providers.openai.api_key"),
        (("batch", "max_requests"), 50_001, "batch.max_requests"),
        (
            ("engines", 0),
            {"model": "m", "engine": "vllm", "price": {"input": 1, "output": 2}},
            "path",
        ),
        (("engines", 0, "engine_args"), {"max_num_seqs": 9}, "engines.0.*max_num_seqs"),
        (("engines", 0, "engine_args"), {"served_model_name": "x"}, "served_model_name"),
        (("engines", 0, "lora_modules"), {"smollm2-135m": "/x"}, "served twice: smollm2-135m"),
        (("engines", 0, "gpus"), [-1], "engines.0.gpus"),
        (("engines", 0, "price"), {"input": "1"}, "engines.0.*price.output"),
        (("engines", 0, "price"), None, "engines.0.*price.input"),
        (("deployments", 0, "price"), {"input": 0, "output": 0}, "deployments.0.*free: true"),
        (("deployments", 2, "price"), {"input": 0}, "deployments.2.*free: true"),
        (("engines", 0, "price"), {"input": 0, "output": 0}, "engines.0.*free: true"),
        (("engines", 0, "free"), True, "engines.0.*free: the model has a price"),
        (("tenants", "default", "monthly_budget"), "-1", "tenants.default.monthly_budget"),
        (("tenants", "default", "daily_budget"), "0.0000000001", "tenants.default.daily_budget"),
        (("tenants", "default", "over_budget"), "realtime", "tenants.default.over_budget"),
        (("tenants", "a"), {"dayly_budget": 1}, "tenants.a.dayly_budget"),
        (("lanes",), {"local": {"without_worker": "wait"}}, "lanes.local.without_worker"),
        (("lanes",), {"local": {"max_queued": 0}}, "lanes.local.max_queued"),
        (("surprise",), 1, "surprise"),
        (("routing", "router_settings"), {"retry_polisy": {}}, "router_settings.retry_polisy"),
        (
            ("routing", "router_settings"),
            {"retry_policy": {"TimeOutErrorRetries": 1}},
            "router_settings.retry_policy: .*did you mean TimeoutErrorRetries",
        ),
        (("routing", "router_settings"), {"max_fallbacks": -1}, "router_settings.max_fallbacks"),
        (("litellm_settings",), {"drop_params": True}, "litellm_settings: drop_params"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_key(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, words: str
) -> None:
    file = changed(tmp_path, *path, value=value)
    with pytest.raises(ConfigError, match=words) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "sk-plain-text" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "- a list", ""])
def test_a_file_that_is_no_configuration_is_refused_with_its_name(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"fleet\.yaml"):
        load(tmp_path / "fleet.yaml")


def test_the_catalogue_lists_the_offer_of_each_lane() -> None:
    models = load(SHIPPED).catalogue().models
    assert set(models["gpt-4o"].lanes) == {"realtime", "batch"}
    assert set(models["smollm2-135m"].lanes) == {"local"}
    assert models["gpt-4o"].lanes["batch"].price == Rates(input="1.25", output="5")
    assert models["smollm2-135m"].lanes["local"].queue == "local.smollm2-135m"
    assert models["text-embedding-3-small"].kind == "embedding"
    with pytest.raises(UnknownModel):
        load(SHIPPED).list_price("nobody")


def test_the_shipped_cap_of_a_request_does_not_refuse_chats_without_a_token_limit(
    tmp_path: Path,
) -> None:
    gpt_5 = {"id": "g", "model": "gpt-5", "provider": "openai", "upstream": "gpt-5"}
    catalogue = load(changed(tmp_path, "deployments", 2, value=gpt_5)).catalogue()
    chat = CompletionRequest(model="gpt-5", messages=[{"role": "user", "content": "hello"}])
    estimate = route(chat, chat.to_wire(), catalogue, datetime.now(UTC)).estimate
    assert estimate.max_cost > 128_000 * 10_000 > 10**9 > estimate.expected_cost > 4096 * 10_000


def test_an_older_producer_reads_two_prices_in_the_catalogue() -> None:
    wire = json.loads(load(SHIPPED).catalogue().model_dump_json(exclude_none=True))
    model = wire["models"]["gpt-4o"]
    assert model["list_price"] == model["lanes"]["realtime"]["price"]
    assert {name: float(price) for name, price in model["list_price"].items()} == {
        "input": 2.5,
        "output": 10,
    }
    assert float(model["lanes"]["batch"]["price"]["input"]) == 1.25


def test_a_model_served_twice_has_the_list_price_of_the_first_deployment(tmp_path: Path) -> None:
    file = changed(tmp_path, "engines", 0, "model", value="gpt-4o")
    models = load(file).catalogue().models
    assert set(models["gpt-4o"].lanes) == {"realtime", "batch", "local"}
    assert models["gpt-4o"].list_price == models["gpt-4o"].lanes["realtime"].price


def test_keys_that_begin_with_x_hold_anchors_and_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        """
x-deployment: &deployment {model: m, provider: p, price: {input: "1", output: "2"}}
providers: {p: {litellm_provider: openai, api_key: os.environ/KEY}}
deployments:
  - {<<: *deployment, id: one, upstream: gpt-4o}
  - {<<: *deployment, id: two, upstream: gpt-4o-mini}
"""
    )
    assert [deployment.id for deployment in load(file).deployments_of("m")] == ["one", "two"]


def test_a_free_model_needs_no_price(tmp_path: Path) -> None:
    engine = {"model": "own", "engine": "simulated", "free": True}
    for priced in ({}, {"price": {"input": 0, "output": 0}}):
        config = load(changed(tmp_path, "engines", 0, value=engine | priced))
        assert config.engine("own").rates().is_zero


def test_the_catalogue_has_the_budgets_of_each_tenant_in_nano_dollars() -> None:
    data = yaml.safe_load(SHIPPED.read_text())
    data["tenants"]["acme"] = {"daily_budget": "0.000000001", "over_budget": "batch"}
    catalogue = FleetConfig.model_validate(data).catalogue()
    assert catalogue.limits("anyone") == Limits(
        monthly_budget_nanousd=10_000_000_000_000, max_cost_realtime_nanousd=1_000_000_000
    )
    assert catalogue.limits("acme") == Limits(daily_budget_nanousd=1, over_budget="batch")
    del data["tenants"]
    assert FleetConfig.model_validate(data).catalogue().limits("acme") is None


def test_an_offer_has_the_highest_price_of_all_deployments_that_may_answer() -> None:
    """`a` falls back to `b` and `b` to `c`; `a` is served twice; no model falls back to `d`."""
    data = yaml.safe_load(SHIPPED.read_text())
    models = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}
    prices = {"a1": (1, 5), "a2": (2, 2), "b": (3, 1), "c": (1, 9), "d": (50, 50)}
    data["deployments"] = [
        {
            "id": name,
            "model": model,
            "provider": "openai",
            "upstream": name,
            "price": dict(zip(("input", "output"), prices[name], strict=True)),
            "max_output_tokens": 10 * len(data["deployments"]) if name != "d" else None,
        }
        for name, model in models.items()
    ]
    data["deployments"][3]["max_output_tokens"] = 700
    data["routing"]["fallbacks"] = {"a": ["b"], "d": ["c"]}
    data["routing"]["content_policy_fallbacks"] = {"b": ["c"]}
    offers = {
        name: model.lanes["realtime"]
        for name, model in FleetConfig.model_validate(data).catalogue().models.items()
        if "realtime" in model.lanes
    }
    possible = {name: [costs.price for costs in offer.costs] for name, offer in offers.items()}
    most = {name: max_cost_nanousd(possible[name], Usage(1)) for name in offers}
    assert most == {"a": 3000, "b": 3000, "c": 1000, "d": 50_000}
    output = Usage(text_output_tokens=1)
    assert max_cost_nanousd(possible["a"], output) == 9000
    assert offers["a"].price.base == TokenRates(input=1, output=5)
    assert offers["c"].other_costs == ()
    assert offers["a"].max_output_tokens == 700
    assert offers["d"].max_output_tokens is None


def test_the_catalogue_has_the_tags_of_each_deployment_and_whether_tags_are_supported() -> None:
    data = yaml.safe_load(SHIPPED.read_text())
    plain = FleetConfig.model_validate(data).catalogue()
    assert plain.models["gpt-4o"].lanes["realtime"].tags == ((),)
    assert not plain.tag_filtering
    first = data["deployments"][0]
    first["params"] = {"tags": ["us", "fast"]}
    data["deployments"] += [first | {"id": str(i), "params": {"tags": ["eu"]}} for i in range(2)]
    data["routing"]["enable_tag_filtering"] = True
    catalogue = FleetConfig.model_validate(data).catalogue()
    assert catalogue.models["gpt-4o"].lanes["realtime"].tags == (("eu",), ("fast", "us"))
    assert catalogue.models["gpt-4o-mini"].lanes["realtime"].tags == ((),)
    assert catalogue.tag_filtering
    assert Catalogue.model_validate_json(catalogue.model_dump_json()) == catalogue


def test_the_catalogue_contains_no_key_no_url_and_no_variable_of_a_provider() -> None:
    os.environ["OPENAI_API_KEY"] = "sk-secret"
    os.environ["OPENAI_BASE_URL"] = "https://there.example/v1"
    published = load(SHIPPED).catalogue().model_dump_json()
    for secret in ("sk-secret", "there.example", "os.environ", "OPENAI", "api_"):
        assert secret not in published


def test_a_lane_may_have_a_limit_or_need_a_worker_or_both() -> None:
    data = yaml.safe_load(SHIPPED.read_text())
    data["lanes"] = {
        "realtime": {"max_queued": 9},
        "local": {"without_worker": "refuse", "retry_after": 2},
        "batch": {"max_queued": 7, "without_worker": "keep"},
    }
    catalogue = FleetConfig.model_validate(data).catalogue()
    assert catalogue.lanes == {
        "realtime": LaneLimits(max_queued=9, retry_after=5.0),
        "batch": LaneLimits(max_queued=7, retry_after=5.0),
    }
    assert catalogue.needs_worker == {"local": 2.0}


def test_a_catalogue_of_an_older_fleet_is_understood() -> None:
    """During an upgrade, workers are older or newer than producers."""
    older = load(SHIPPED).catalogue().model_dump(mode="json")
    for field in ("needs_worker", "auto_batch", "tag_filtering"):
        del older[field]
    del older["models"]["gpt-4o"]["lanes"]["realtime"]["tags"]
    catalogue = Catalogue.model_validate(older)
    assert catalogue.auto_batch
    assert catalogue.tag_filtering
    assert catalogue.needs_worker == {}
    assert catalogue.models["gpt-4o"].lanes["realtime"].tags is None


def test_a_missing_api_key_is_refused_with_the_name_of_its_variable() -> None:
    provider = load(SHIPPED).providers["openai"]
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        provider.key()
    os.environ["OPENAI_API_KEY"] = "sk-secret"
    assert provider.key() == "sk-secret"
    assert provider.base_url() is None
    assert "sk-secret" not in repr(load(SHIPPED))


def test_a_missing_base_url_is_refused_with_the_name_of_its_variable() -> None:
    provider = load(SHIPPED).providers["openai"]
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL is not set"):
        provider.required_base_url()
    os.environ["OPENAI_BASE_URL"] = "https://there.example/v1"
    assert provider.required_base_url() == "https://there.example/v1"
    with pytest.raises(ConfigError, match="api_base: missing; openai needs it"):
        provider.model_copy(update={"api_base": None}).required_base_url()


def test_an_unknown_engine_is_refused_with_its_name() -> None:
    config = load(SHIPPED)
    assert config.engine() == config.engine("smollm2-135m")
    with pytest.raises(ConfigError, match="nobody"):
        config.engine("nobody")


def test_the_password_of_redis_is_not_shown() -> None:
    assert "hunter2" not in repr(Settings(redis_url="redis://:hunter2@host/0"))


def test_a_wrong_variable_is_refused_with_its_name() -> None:
    os.environ["FLEET_METRICS_PORT"] = "99999"
    settings.cache_clear()
    with pytest.raises(ConfigError, match="FLEET_METRICS_PORT"):
        settings()
    settings.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "CELERY_BROKER_URL",
        "CELERY_BROKER_READ_URL",
        "CELERY_BROKER_WRITE_URL",
        "CELERY_RESULT_BACKEND",
    ],
)
def test_a_variable_that_celery_prefers_to_ours_ends_the_start_with_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "config.celeryconfig", raising=False)
    os.environ |= {"FLEET_REDIS_URL": "redis://host/0", name: "amqp://guest:hunter2@host//"}
    settings.cache_clear()
    with pytest.raises(ConfigError, match=f"unset {name}.*FLEET_REDIS_URL") as raised:
        runpy.run_module("config.celeryconfig")
    assert "hunter2" not in str(raised.value)
    settings.cache_clear()


def test_a_dumped_configuration_loads_as_the_same(tmp_path: Path) -> None:
    """`make up` gives its child processes a changed copy."""
    config = load(SHIPPED)
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load(tmp_path / "copy.yaml") == config
    assert isinstance(config, FleetConfig)
