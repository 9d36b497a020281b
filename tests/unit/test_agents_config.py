"""The `routing_orchestration` section: the effect of each key, and no other keys."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.fleet import FleetConfig, load
from config.settings import ROOT
from primarch_fleet import Catalogue, CompletionRequest
from primarch_fleet.errors import ConfigError
from primarch_fleet.routing import route

#: A production configuration of the Primarch agents, unchanged.
GIVEN = ROOT / "tests" / "data" / "routing_orchestration.yaml"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cheap(**fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "x"}]
    return CompletionRequest(model="gpt-4o", messages=messages, cost_preference="cost", **fields)


def lane_of(request: CompletionRequest, catalogue: Catalogue) -> str:
    return route(request, request.to_wire(), catalogue, NOW).lane


#: By key: another value, a function that reads the effect, and the effects of the given and of the
#: other value.
EFFECTS: dict[str, tuple[Any, Callable[[FleetConfig], Any], Any, Any]] = {
    "litellm_router.routing_strategy": (
        "least-busy",
        lambda c: c.routing.routing_strategy,
        "usage-based-routing-v2",
        "least-busy",
    ),
    "litellm_router.enable_fallbacks": (
        False,
        lambda c: sorted(c.routing.possible_models("gpt-4o")),
        ["gpt-4o", "gpt-4o-mini"],
        ["gpt-4o"],
    ),
    "litellm_router.enable_circuit_breakers": (
        False,
        lambda c: c.routing.disable_cooldowns,
        False,
        True,
    ),
    "litellm_router.redis_caching": (False, lambda c: c.routing.shared_state, True, False),
    "vllm_optimization.tensor_parallel_size": (2, lambda c: c.engine().gpus_per_worker, 4, 2),
    "vllm_optimization.max_batch_size": (64, lambda c: c.engine().max_num_seqs, 128, 64),
    "vllm_optimization.enable_prefix_caching": (
        False,
        lambda c: c.engine().enable_prefix_caching,
        True,
        False,
    ),
    "vllm_optimization.gpu_memory_utilization": (
        0.5,
        lambda c: c.engine().gpu_memory_utilization,
        0.9,
        0.5,
    ),
    "batch_processing.max_batch_size": (7, lambda c: c.batch.max_requests, 50_000, 7),
    "batch_processing.default_completion_window": (
        "2d",
        lambda c: c.catalogue().completion_window,
        86_400,
        172_800,
    ),
    "batch_processing.enable_cost_optimization": (
        False,
        lambda c: (
            lane_of(cheap(), c.catalogue()),
            lane_of(cheap(lane="batch"), c.catalogue()),
        ),
        ("batch", "batch"),
        ("realtime", "batch"),
    ),
    "cost_optimization.target_cost_reduction": (
        0.5,
        lambda c: c.targets.by_name()["cost_reduction"],
        0.4,
        0.5,
    ),
    "cost_optimization.batch_threshold_requests": (7, lambda c: c.batch.min_requests, 100, 7),
    "cost_optimization.realtime_cost_limit_usd": (
        0.25,
        lambda c: c.catalogue().tenants["default"].max_cost_realtime_nanousd,
        1_000_000_000,
        250_000_000,
    ),
    "performance_monitoring.latency_targets.realtime_p95_ms": (
        1500,
        lambda c: c.targets.by_name()["realtime_p95_seconds"],
        2.0,
        1.5,
    ),
    "performance_monitoring.latency_targets.batch_completion_hours": (
        10,
        lambda c: c.targets.by_name()["batch_completion_seconds"],
        72_000,
        36_000,
    ),
    "performance_monitoring.latency_targets.local_inference_p95_ms": (
        250,
        lambda c: c.targets.by_name()["local_p95_seconds"],
        0.5,
        0.25,
    ),
    "performance_monitoring.cost_targets.monthly_budget_usd": (
        5,
        lambda c: (
            c.targets.by_name()["monthly_cost_usd"],
            c.catalogue().tenants["default"].monthly_budget_nanousd,
        ),
        (10_000, 10_000_000_000_000),
        (5, 5_000_000_000),
    ),
    "performance_monitoring.cost_targets.cost_per_request_target": (
        0.01,
        lambda c: c.targets.by_name()["cost_per_request_usd"],
        0.05,
        0.01,
    ),
}
SECTIONS = sorted({key.rpartition(".")[0] for key in EFFECTS} | {"", "performance_monitoring"})


def given() -> Any:
    return yaml.safe_load(GIVEN.read_text())["routing_orchestration"]


def shipped() -> Any:
    """The shipped file without the keys of engine and tenant that would override the section."""
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    del file["engines"][0]["max_num_seqs"]
    del file["tenants"]["default"]
    return file


def keys(data: Any, path: str = "") -> set[str]:
    if not isinstance(data, dict):
        return {path}
    return {key for name in data for key in keys(data[name], f"{path}.{name}".lstrip("."))}


def put(data: Any, path: str, value: Any) -> Any:
    *steps, last = path.split(".")
    parent = data
    for step in steps:
        parent = parent[step]
    parent[last] = value
    return data


def config(orchestration: Any, file: Any = None) -> FleetConfig:
    return FleetConfig.model_validate(
        (file or shipped()) | {"routing_orchestration": orchestration}
    )


def test_every_key_of_the_given_configuration_is_tested() -> None:
    assert keys(given()) == set(EFFECTS)


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_has_its_effect(key: str) -> None:
    other, effect, with_given, with_other = EFFECTS[key]
    assert effect(config(given())) == with_given
    assert effect(config(put(given(), key, other))) == with_other


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_with_its_name(section: str, tmp_path: Path) -> None:
    wrong = f"{section}.surprise".lstrip(".")
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(shipped() | {"routing_orchestration": put(given(), wrong, 1)}))
    with pytest.raises(ConfigError, match=f"routing_orchestration.{wrong}: "):
        load(file)


def test_the_given_section_can_be_appended_to_the_shipped_file(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text((ROOT / "config" / "fleet.yaml").read_text() + "\n" + GIVEN.read_text())
    loaded = load(file)
    assert loaded.routing.routing_strategy == "usage-based-routing-v2"
    assert loaded.routing_orchestration is None
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(loaded.model_dump(mode="json")))
    assert load(copy) == loaded


def test_keys_of_an_engine_or_a_tenant_override_the_section() -> None:
    file = shipped()
    file["engines"][0]["max_num_seqs"] = 5
    file["tenants"]["acme"] = {"monthly_budget": "1"}
    loaded = config(given(), file)
    assert loaded.engine().max_num_seqs == 5
    assert loaded.tenants["acme"].monthly_budget == 1


def test_keys_missing_from_the_section_keep_the_values_of_the_file() -> None:
    file = shipped()
    file["routing"] |= {"disable_cooldowns": True, "shared_state": False}
    file["targets"] = {"cost_reduction": 0.1}
    before = FleetConfig.model_validate(file)
    assert config({}, file) == before
    assert config({"vllm_optimization": {}}, file) == before


def test_the_given_targets_equal_the_defaults_except_the_cost_reduction() -> None:
    plain = FleetConfig.model_validate(shipped()).targets
    assert plain.cost_reduction is None
    assert plain.model_copy(update={"cost_reduction": 0.4}) == config(given()).targets
    assert plain.cost_per_request_usd == Decimal("0.05")
