"""Which versions of Redis and Valkey have known vulnerabilities."""

import pytest

from config.settings import ROOT
from primarch_fleet.redis_advisories import AS_OF, FLOORS, ServerVersion


@pytest.mark.parametrize(
    ("reply", "upgrade"),
    [
        ({"redis_version": "6.2.22"}, "6.2.23"),
        ({"redis_version": "6.2.23"}, ""),
        ({"redis_version": "6.0.16"}, "6.2.23"),
        ({"redis_version": "7.0.15"}, "7.2.15"),
        ({"redis_version": "8.0.6"}, "8.2.8"),
        ({"redis_version": "8.8.1"}, ""),
        ({"redis_version": "9.0.0"}, ""),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, "9.1.1"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, ""),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.4"}, "8.1.9"),
        ({"redis_version": "255.255.255"}, ""),
        ({"redis_version": "7"}, ""),
        ({}, ""),
    ],
)
def test_a_version_below_the_floor_of_its_series_has_advice(
    reply: dict[str, str], upgrade: str
) -> None:
    advice = ServerVersion.parse(reply).advice()
    assert bool(advice) == bool(upgrade)
    assert advice.endswith(f"upgrade to {upgrade} or newer" if upgrade else "")


def test_the_security_page_names_the_same_versions() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    assert AS_OF in page
    for name, floors in FLOORS.items():
        row = next(line for line in page.splitlines() if line.lower().startswith(f"| {name} |"))
        for (major, minor), patch in floors.items():
            assert f"{major}.{minor}.{patch}" in row
