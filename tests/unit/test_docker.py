"""The container files name files and modules that exist. Nothing is built: that needs Docker."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT
from config.targets import Targets
from primarch_fleet.errors import error_class
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
    "absent(",
)


RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())[
        "groups"
    ]
    for rule in group["rules"]
]


def expressions() -> list[str]:
    return [rule["expr"] for rule in RULES]


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
    assert {re.sub("_(bucket|count)$", "", name) for name in used} <= named


def test_alerts_leave_out_codes_of_errors_that_exist() -> None:
    codes = [
        code
        for listed in re.findall(r'code!~"([^"]+)"', " ".join(expressions()))
        for code in listed.split("|")
    ]
    assert codes
    assert [code for code in codes if error_class(code).code != code] == []


#: What a rule on an operator's page needs: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
RULE_KEYS = {"alert", "expr", "for", "labels", "annotations"}


def test_each_alert_has_a_name_of_its_own_a_severity_and_a_summary() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.keys() <= RULE_KEYS
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
        assert all(rule["expr"].count(a) == rule["expr"].count(b) for a, b in ("()", "{}", "[]"))


@pytest.mark.parametrize(
    "metric",
    [
        *("primarch_request_failures_total", "primarch_queue_oldest_wait_seconds"),
        *("primarch_queue_workers", "primarch_dead_letters_kept"),
    ],
)
def test_errors_backlog_absent_workers_and_dead_letters_have_an_alert(metric: str) -> None:
    assert any(metric in expression for expression in expressions())


def test_a_target_that_is_not_set_is_not_exported() -> None:
    assert "cost_reduction" not in Targets().by_name()
    assert Targets(cost_reduction=0.4).by_name()["cost_reduction"] == 0.4


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
