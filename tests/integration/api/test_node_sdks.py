"""Clients for Node.js against `fleet serve`: the tests in tests/node, on Node's own runner."""

import os
import shutil
import subprocess

import pytest

from config.settings import ROOT
from tests.integration.api.conftest import Served
from tests.support.api_server import ALPHA

FOLDER = ROOT / "tests" / "node"
IS_INSTALLED = shutil.which("node") is not None and (FOLDER / "node_modules").exists()


@pytest.mark.skipif(
    not IS_INSTALLED and "CI" not in os.environ, reason="needs Node.js and npm: make test"
)
@pytest.mark.parametrize("client", sorted(path.name for path in FOLDER.glob("*.test.mjs")))
def test_a_client_for_node_works_with_another_base_url(served: Served, client: str) -> None:
    run = subprocess.run(
        ["node", "--test", "--test-reporter=spec", client],
        cwd=FOLDER,
        env=os.environ | {"FLEET_API_URL": f"{served.server.root}/v1", "FLEET_API_KEY": ALPHA},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
