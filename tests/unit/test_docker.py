"""The container files name files and modules that exist. Nothing is built: that needs Docker."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT, Settings
from workers.onebox.processes import STOP_MARGIN_SECONDS

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


@pytest.mark.parametrize("name", ["realtime", "batch", "local"])
def test_compose_can_start_several_containers_of_a_lane(name: str) -> None:
    """Each would have the same container name, or the same port of the host."""
    service = SERVICES[name]
    assert service.keys().isdisjoint({"container_name", "ports", "hostname"})
    assert f"-n {name}@%h" in service["command"]
    assert "/health" in service["healthcheck"]["test"][-1]
    seconds = int(service["stop_grace_period"].removesuffix("s"))
    assert seconds >= Settings().drain_timeout + STOP_MARGIN_SECONDS
    [targets] = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ][0]["dns_sd_configs"]
    assert name in targets["names"]


def test_only_lanes_that_call_a_provider_get_its_key() -> None:
    with_key = {
        name
        for name, service in SERVICES.items()
        if "OPENAI_API_KEY" in service.get("environment", {})
    }
    assert with_key == {"realtime", "batch"}


def test_prometheus_reads_rules_that_are_mounted() -> None:
    folder = ROOT / "docker" / "prometheus"
    for name in yaml.safe_load((folder / "prometheus.yml").read_text())["rule_files"]:
        assert (folder / name).exists()
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
