"""LiteLLM is imported without garbage collection, by whichever module of the fleet is first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from config.settings import ROOT

SCRIPT = """
import gc, sys

collections = []

def while_litellm_is_imported(phase, info):
    spec = getattr(sys.modules.get("litellm"), "__spec__", None)
    if phase == "start" and getattr(spec, "_initializing", False):
        collections.append(info)

gc.callbacks.append(while_litellm_is_imported)
{imports}
assert "litellm" in sys.modules
assert collections == []
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import workers.realtime.app",
        "from scheduler.providers import gemini_results as results; results._litellm()",
        "from scheduler.providers import anthropic_results as results; results._litellm()",
    ],
)
def test_litellm_when_a_process_imports_it_is_not_searched_for_garbage(imports: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(imports=imports)],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": "sk-1", "FLEET_REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
