"""The container files name files and modules that exist. Nothing is built: that needs Docker."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT
from config.targets import Targets
from workers.observability.metrics import batch_duration, request_duration

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())[
    "services"
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_dockerfile_copies_files_and_starts_modules_that_exist(file: Path) -> None:
    text = file.read_text()
    sources = re.findall(r"^COPY ((?:\S+ )+)\S+$", text, re.MULTILINE)
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
    for module in re.findall(r'"-A", "([\w.]+)"', text):
        assert find_spec(module) is not None


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_a_service_runs_a_module_that_exists(name: str) -> None:
    service = SERVICES[name]
    assert (ROOT / service["build"]["dockerfile"]).exists()
    [module] = re.findall(r"-[Am] ([\w.]+)", service["command"])
    assert find_spec(module) is not None


def test_only_lanes_that_call_a_provider_get_its_key() -> None:
    with_key = {
        name
        for name, service in SERVICES.items()
        if "OPENAI_API_KEY" in service.get("environment", {})
    }
    assert with_key == {"realtime", "batch"}


#: Metrics whose alerts need no target.
ALARMS = (
    "primarch_account_alarms_total",
    "primarch_queue_workers",
    "primarch_batch_overdue_seconds",
    "primarch_dead_letters",
)


def expressions() -> list[str]:
    file = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())
    return [rule["expr"] for group in file["groups"] for rule in group["rules"]]


def test_prometheus_reads_rules_that_are_mounted() -> None:
    folder = ROOT / "docker" / "prometheus"
    for name in yaml.safe_load((folder / "prometheus.yml").read_text())["rule_files"]:
        assert (folder / name).exists()
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]


def test_alerts_use_metrics_that_workers_export() -> None:
    code = "".join(
        (ROOT / module).read_text()
        for module in (
            "tasks/failures.py",
            "workers/observability/metrics.py",
            "scheduler/metrics.py",
            "scheduler/fleet_metrics.py",
        )
    )
    named = set(re.findall(r'"(primarch_\w+)"', code))
    used = set(re.findall(r"primarch_\w+", " ".join(expressions())))
    assert {name.removesuffix("_bucket") for name in used} <= named


def test_every_target_has_an_alert_and_every_alert_a_target() -> None:
    by_alert = [
        re.findall(r'primarch_target\{name="(\w+)"\}', expression)
        for expression in expressions()
        if not any(name in expression for name in ALARMS)
    ]
    assert all(len(names) == 1 for names in by_alert)
    assert {name for (name,) in by_alert} == set(Targets.model_fields)


def test_latency_targets_are_bounds_of_histogram_buckets() -> None:
    """Otherwise quantiles near the target are interpolated."""
    targets = Targets()
    bounds = request_duration._upper_bounds
    assert {targets.realtime_p95_seconds, targets.local_p95_seconds} <= set(bounds)
    assert targets.batch_completion_seconds / 3600 in batch_duration._upper_bounds
