"""Each alert has a runbook and a promtool test, and names metrics and targets that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT
from config.targets import Targets
from primarch_fleet.errors import error_class
from tests.support.promql import PROMETHEUS, expressions_of, mistakes
from workers.observability.metrics import batch_duration, request_duration

RUNBOOKS = ROOT / "docs" / "runbooks"
#: Tests for `promtool test rules`: one file for each alert, and recording.yml.
PROMTOOL_TESTS = ROOT / "tests" / "prometheus"
RULE_FILES = (PROMETHEUS / "alerts.yml", PROMETHEUS / "recording.yml")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
#: Metrics whose alerts need no target.
ALARMS = (
    "primarch_account_alarms_total",
    "primarch_queue_workers",
    "primarch_batch_overdue_seconds",
    "primarch_dead_letters",
    "primarch_redis_warning",
    "primarch_redis_certificate_expiry_timestamp_seconds",
    "absent(",
)
#: What a rule on an operator's page needs: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
RULE_KEYS = {"alert", "expr", "for", "labels", "annotations"}


def expressions() -> list[str]:
    return [rule["expr"] for rule in RULES]


@pytest.mark.parametrize(
    "file", [*RULE_FILES, *sorted(RUNBOOKS.glob("*.md"))], ids=lambda file: file.name
)
def test_rules_and_runbooks_name_metrics_and_labels_that_exist(file: Path) -> None:
    text = "\n".join(expressions_of(file)) if file in RULE_FILES else file.read_text()
    assert [*mistakes(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        *("primarch_queue_dept", "primarch_request_duration_seconds", "lane:expected_wait"),
        'primarch_queue_depth{q="a"}',
    ],
)
def test_a_metric_or_label_that_does_not_exist_is_a_mistake(text: str) -> None:
    assert len([*mistakes(f"sum({text})")]) == 1


def test_alerts_leave_out_codes_of_errors_that_exist() -> None:
    codes = [
        code
        for listed in re.findall(r'code!~"([^"]+)"', " ".join(expressions()))
        for code in listed.split("|")
    ]
    assert codes
    assert [code for code in codes if error_class(code).code != code] == []


def test_each_alert_has_a_name_of_its_own_a_severity_and_all_annotations() -> None:
    assert len(set(NAMES)) == len(RULES)
    for rule in RULES:
        assert rule.keys() <= RULE_KEYS
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert all(rule["annotations"].values())


def test_each_alert_has_its_runbook_and_each_runbook_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS.iterdir()} == set(NAMES)
    operations = (ROOT / "docs" / "operations.md").read_text()
    for rule in RULES:
        name, severity = rule["alert"], rule["labels"]["severity"]
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        text = (RUNBOOKS / f"{name}.md").read_text()
        headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
        assert headings == [f"# {name}", "## See what is wrong", "## What to do"]
        assert f"| [{name}](runbooks/{name}.md) | {severity} |" in operations


def test_runbooks_use_commands_that_operations_lists() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    commands = set(re.findall(r"^\| `([\w-]+)", operations, re.MULTILINE))
    used = {
        command
        for path in RUNBOOKS.iterdir()
        for command in re.findall(r"`fleet ([\w-]+)", path.read_text())
    }
    assert used >= {"queues", "batches", "dead", "costs"}
    assert used - commands == set()


def test_each_alert_has_its_promtool_test_that_sees_it_fire_and_not_fire() -> None:
    files = {path.stem: path for path in PROMTOOL_TESTS.iterdir()}
    assert files.keys() == {*NAMES, "recording"}
    for name in NAMES:
        tests = yaml.safe_load(files[name].read_text())["tests"]
        checks = [check for test in tests for check in test["alert_rule_test"]]
        assert {check["alertname"] for check in checks} == {name}
        assert {bool(check["exp_alerts"]) for check in checks} == {True, False}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", PROMETHEUS / "prometheus.yml"],
        ["test", "rules", *sorted(PROMTOOL_TESTS.glob("*.yml"))],
    ],
    ids=["config", "rules"],
)
def test_promtool_finds_no_mistake(arguments: list[str]) -> None:
    if shutil.which("promtool") is None and "CI" not in os.environ:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "metric",
    [
        *("primarch_request_failures_total", "primarch_queue_oldest_wait_seconds"),
        *("primarch_queue_workers", "primarch_dead_letters_kept", "primarch_budget_usd"),
        *("primarch_batch_overdue_seconds", "primarch_batch_oldest_wait_seconds"),
        *("primarch_redis_memory_bytes", "primarch_redis_warning"),
        "primarch_redis_certificate_expiry_timestamp_seconds",
    ],
)
def test_what_an_operator_must_know_has_an_alert(metric: str) -> None:
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
