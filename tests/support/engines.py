"""The engines that tests run: the simulated one, and vLLM where `make engine` has put it.

FLEET_TEST_VLLM_MODEL names the folder of a chat model; without it nothing runs on vLLM.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.engine import EngineConfig
from config.settings import ROOT

VLLM_MODEL = os.environ.get("FLEET_TEST_VLLM_MODEL", "")

#: Of a test that needs vLLM: `make test-engine` runs these.
on_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM_MODEL, reason="runs on vLLM: make engine && make test-engine"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
    pytest.mark.timeout(600),
]

#: For the parameter of a test or fixture that runs on both.
ENGINES = ["simulated", pytest.param("vllm", marks=on_vllm)]

#: The environment of vLLM, here and in workers: GiB of cache where there is no GPU, nothing is
#: fetched, and process titles leave the environment for tests to read.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "SPT_NOENV": "1"}

#: SmolLM2's token for it: banned, an answer goes on to its limit.
END_OF_ANSWER = "2"


def config(engine: str, **changes: Any) -> EngineConfig:
    """The model `tested` on an engine, small enough for this machine."""
    os.environ.update(ENVIRONMENT)
    return EngineConfig.model_validate(settings(engine) | changes)


def settings(engine: str) -> dict[str, Any]:
    """An entry of `engines` in fleet.yaml."""
    return {
        "model": "tested",
        "engine": engine,
        "path": VLLM_MODEL,
        "price": {"input": "1", "output": "2"},
        "max_num_seqs": 32,
        "max_model_len": 2048,
        "dtype": "float32",
        "enforce_eager": True,
    }


def fleet_file(path: Path, engine: str = "vllm", **changes: Any) -> Path:
    """The shipped fleet.yaml with this engine as its only one."""
    fleet = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    fleet["engines"] = [settings(engine) | changes]
    path.write_text(yaml.safe_dump(fleet))
    return path
