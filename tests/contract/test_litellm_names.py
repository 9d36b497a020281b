"""What `config` knows of LiteLLM is what the installed LiteLLM says."""

import json
import subprocess
import sys

import pytest

from config.inline_accounts import LISTED_PROVIDERS, split_model
from config.litellm_params import (
    NAMES_FILE,
    NOT_SECRET,
    PROXY_ONLY,
    SECRET,
    SET_ELSEWHERE,
    SUSPICIOUS,
    NameKind,
    is_price,
    known_names,
)
from config.litellm_proxy import MODULE_SETTINGS
from config.price_list import price_list
from config.proxy_routing import MODULE_ROUTING, ROUTING
from config.routing import ROUTER_SETTINGS
from config.settings import ROOT

#: Prints all names, and the provider of each model that LiteLLM knows without one.
PROGRAM = """
import json, sys
from tests.contract.litellm_names import names
import litellm
models = {
    model: litellm.get_llm_provider(model)[1]
    for model in json.load(sys.stdin)
}
print(json.dumps([names(), models]))
"""


def listed_models() -> list[str]:
    """Models of the price list whose names have no provider."""
    return [
        model
        for model, facts in price_list().items()
        if "/" not in model
        and not model.startswith("ft:")
        and facts["litellm_provider"] in LISTED_PROVIDERS
    ]


def test_names_and_providers_are_those_of_the_installed_litellm() -> None:
    """In a process of its own: other tests change settings of LiteLLM."""
    command = [sys.executable, "-c", PROGRAM]
    models = listed_models()
    run = subprocess.run(
        command, input=json.dumps(models), capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    installed, providers = json.loads(run.stdout.splitlines()[-1])
    known = json.loads(NAMES_FILE.read_text())
    for kind, names in installed.items():
        assert set(names) == set(known[kind]), f"{kind}: see tests/contract/litellm_names.py"
    assert {model: split_model(model)[0] for model in models} == providers


def test_every_suspicious_parameter_is_sorted_into_secrets_and_others() -> None:
    suspicious = {
        name
        for name in known_names("litellm_params")
        if SUSPICIOUS.search(name) and not is_price(name)
    }
    assert suspicious == SECRET | NOT_SECRET
    assert not SECRET & NOT_SECRET


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("litellm_params", PROXY_ONLY | SET_ELSEWHERE.keys()),
        ("router_settings", ROUTING | ROUTER_SETTINGS),
        ("litellm_settings", MODULE_SETTINGS | MODULE_ROUTING.keys()),
    ],
)
def test_every_name_that_the_fleet_handles_is_one_of_litellms(
    kind: NameKind, names: frozenset[str]
) -> None:
    assert names - known_names(kind) == set()
