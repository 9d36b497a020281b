"""The Grafana dashboard: its queries name what exists and parse, and it shows every metric."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT
from docs.metric_list import declared_metrics
from tests.support.promql import mistakes

GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "fleet.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
#: Panels with queries, by row and title: rows come before their panels.
QUERIED: dict[str, dict[str, Any]] = {}
for _panel in PANELS:
    if _panel["type"] == "row":
        _row = _panel["title"]
    else:
        QUERIED[f"{_row}: {_panel['title']}"] = _panel
#: Panels that Grafana itself has: none needs a plugin.
TYPES = {"row", "stat", "timeseries", "table", "bargauge"}
SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())[
    "services"
]["grafana"]


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_the_dashboard_has_a_fixed_address_and_its_rows() -> None:
    assert DASHBOARD["uid"] == "primarch-fleet"
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]
    assert rows == ["Overview", "Lanes", "Money", "Batches", "Engines", "HTTP API"]
    assert {panel["type"] for panel in PANELS} <= TYPES
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len(QUERIED) == len(PANELS) - len(rows)


def test_panels_fill_the_width_and_cover_each_other_nowhere() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert max(column for column, _ in cells) < 24
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells


@pytest.mark.parametrize("title", QUERIED)
def test_a_panel_names_metrics_and_labels_that_exist(title: str) -> None:
    panel = QUERIED[title]
    assert panel["description"]
    for target in panel["targets"]:
        assert [*mistakes(target["expr"])] == []
        shown = re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        kept = {name.strip() for names in grouped for name in names.split(",")}
        assert set(shown) <= (kept or {"lane"}), target["expr"]


def test_every_metric_is_on_the_dashboard() -> None:
    text = " ".join(query for panel in QUERIED.values() for query in queries(panel))
    names = {metric.name for metrics in declared_metrics().values() for metric in metrics}
    assert [name for name in sorted(names) if name not in text] == []


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    if shutil.which("promtool") is None and "CI" not in os.environ:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    variables = {"$__rate_interval": "1m", "$lane": ".*", "$tenant": ".*"}
    rules: list[dict[str, str]] = []
    for panel in QUERIED.values():
        for query in queries(panel):
            for name, value in variables.items():
                query = query.replace(name, value)  # noqa: PLW2901
            assert "$" not in query
            rules.append({"record": f"panel:{panel['id']}:{len(rules)}", "expr": query})
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_asks_the_data_source_that_is_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    [source] = sources["datasources"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/fleet.yml").read_text())[
        "providers"
    ]
    asked = {"type": source["type"], "uid": source["uid"]}
    variables = DASHBOARD["templating"]["list"]
    for panel in [*QUERIED.values(), *variables]:
        assert panel["datasource"] == asked
        assert all(target["datasource"] == asked for target in panel.get("targets", []))
    for variable in variables:
        assert [*mistakes(variable["query"]["query"])] == []
    mounts = dict(volume.split(":")[:2] for volume in SERVICE["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"


def test_grafana_has_no_login_no_right_to_write_and_no_other_address_than_loopback() -> None:
    environment = SERVICE["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", SERVICE["image"])
    assert SERVICE["read_only"] is True
    assert SERVICE["user"] not in {"0", "root"}
    assert SERVICE["ports"] == ["127.0.0.1:3000:3000"]
    assert all(volume.endswith(":ro") for volume in SERVICE["volumes"])
