"""A batch worker's environment."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.batch_fixture import config


def environment(folder: Path, url: str) -> dict[str, str]:
    """The environment of a batch worker."""
    file = folder / "fleet.yaml"
    tenants = {"tenants": {"default": {"monthly_budget": "100"}}}
    file.write_text(yaml.safe_dump(config().model_dump(mode="json") | tenants))
    return {
        "FLEET_REDIS_URL": url,
        "FLEET_CONFIG": str(file),
        "FLEET_DATA_DIR": str(folder),
        "FLEET_VISIBILITY_TIMEOUT": "2",
        "TEST_KEY": "simulated",
    }
