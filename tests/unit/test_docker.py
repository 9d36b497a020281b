"""The container files name what exists; building them needs Docker and is not done here."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import ROOT

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())[
    "services"
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_dockerfile_copies_what_is_there_and_starts_what_exists(file: Path) -> None:
    text = file.read_text()
    sources = re.findall(r"^COPY ((?:\S+ )+)\S+$", text, re.MULTILINE)
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
    for module in re.findall(r'"-A", "([\w.]+)"', text):
        assert find_spec(module) is not None


@pytest.mark.parametrize("name", [name for name, one in SERVICES.items() if "build" in one])
def test_a_service_runs_an_app_of_the_fleet(name: str) -> None:
    service = SERVICES[name]
    assert (ROOT / service["build"]["dockerfile"]).exists()
    [module] = re.findall(r"-[Am] ([\w.]+)", service["command"])
    assert find_spec(module) is not None


def test_only_the_lanes_that_call_a_provider_hold_its_key() -> None:
    with_key = {
        name for name, one in SERVICES.items() if "OPENAI_API_KEY" in one.get("environment", {})
    }
    assert with_key == {"realtime", "batch"}
