"""Which accounts `make up` simulates, and the configuration with the simulator in their place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import yaml

from config.fleet import FleetConfig
from config.inline_accounts import receipt_provider
from config.key_variables import missing_key
from config.litellm_params import (
    ENVIRONMENT_PREFIX,
    LitellmParams,
    secret_references,
)
from config.section import Values
from primarch_fleet.prices import RATE_KINDS, Rates, Steps, TokenRates
from workers.onebox.private_file import write_private

#: The simulated provider's response times and batch stages, in seconds.
LATENCY = {"mean": 0.3, "jitter": 0.1, "time_per_token": 0.005}
BATCH_STAGES = {"validating": 0.25, "in_progress": 1.0, "finalizing": 0.25}
#: Settings of fleet.yaml's `batch` section for a provider whose batches take seconds, not hours.
BATCH = {
    "max_wait": 1.0,
    "aggregate_interval": 0.5,
    "poll_interval": 0.5,
    "poll_interval_max": 2.0,
    # The simulator keeps its batches in memory: after a restart they are lost.
    "lost_after": 5.0,
    "list_lag": 1.0,
}
#: Files in the data folder: for the processes of the fleet, and for the simulator.
CONFIG_FILE, PROFILE_FILE = "simulated-fleet.yaml", "simulator-profile.json"
#: The variable with the simulator's key.
KEY_VARIABLE = "SIMULATED_PROVIDER_KEY"
#: Parameters that say how requests are routed; the others are for the real provider.
ROUTING_PARAMS = LitellmParams.model_fields.keys() | {"drop_params"}


def missing_secrets(config: FleetConfig) -> dict[str, list[str]]:
    """Return the variables of secrets that are not set, by the account that needs them."""
    missing: dict[str, list[str]] = {}
    for deployment in config.deployments:
        provider = config.providers[deployment.provider]
        key = {} if provider.api_key is None else {"api_key": provider.api_key}
        account, own = (one.litellm_params.values() for one in (provider, deployment))
        params = {**key, **account, **own}
        unset = [name for name in secret_references(params) if not os.environ.get(name)]
        if lacking := missing_key(provider.litellm_provider, params, deployment.kind):
            unset.append(lacking)
        if unset:
            missing.setdefault(deployment.provider, []).extend(unset)
    return missing


def write_files(data_dir: Path, config: FleetConfig, accounts: Set[str], url: str) -> None:
    """Write the files of a fleet with simulated accounts; see `simulated_config`."""
    values = simulated_config(config, accounts, url)
    write_private(data_dir / CONFIG_FILE, yaml.safe_dump(values))
    write_private(data_dir / PROFILE_FILE, json.dumps(simulator_profile(config)))


def names(accounts: Iterable[str]) -> str:
    """Return accounts as a person reads them."""
    return ", ".join(sorted(set(map(receipt_provider, accounts))))


def simulated_config(config: FleetConfig, accounts: Set[str], url: str) -> Values:
    """Return fleet.yaml's values with accounts at the simulator, which speaks OpenAI's API.

    The batch lane hurries only where no real provider answers: it would pay for many batches.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    account = {
        "litellm_provider": "openai",
        "api_key": f"{ENVIRONMENT_PREFIX}{KEY_VARIABLE}",
        "api_base": url,
        "simulated": True,
    }
    for name in accounts:
        secret = values["providers"][name].get("webhook_secret")
        values["providers"][name] = {**account, "webhook_secret": secret}
    for deployment, own in zip(values["deployments"], config.deployments, strict=True):
        if deployment["provider"] in accounts:
            # The price list has no entry for the simulator's models.
            deployment["price"] = _own_price(config.rates(own))
            params = deployment["litellm_params"]
            kept = params.keys() & ROUTING_PARAMS
            deployment["litellm_params"] = {name: params[name] for name in kept}
    if accounts == config.providers.keys():
        values["batch"] |= BATCH
    return values


def _own_price(rates: Rates) -> Values:
    """Rates as the `price` of a deployment; the steps of long prompts are left out."""

    def card(steps: Steps) -> Values:
        return {kind: str(steps[0].rate(kind)) for kind in RATE_KINDS}

    tiers = {name: card(steps) for name, steps in rates.tiers.items()}
    return card(rates.standard) | {"tiers": tiers, "batch": card(rates.batch or rates.standard)}


def simulator_profile(config: FleetConfig) -> dict[str, Any]:
    """Return the fleet's models at the fleet's prices, with the latency of a fast provider."""
    models = {
        deployment.upstream: {
            "kind": deployment.kind,
            **simulator_prices(config.rates(deployment)),
        }
        for deployment in config.deployments
    }
    return {"models": models, "latency": LATENCY, "batch": BATCH_STAGES}


#: The simulator's names of prices -> ours.
_PRICES = {
    "input": "input",
    "cached_input": "cached_input",
    "cache_write_5m": "cache_write",
    "cache_write_1h": "cache_write_1h",
    "audio_input": "audio_input",
    "image_input": "image_input",
    "output": "output",
    "reasoning": "reasoning",
    "audio_output": "audio_output",
}


def simulator_prices(rates: Rates) -> dict[str, Any]:
    """Return rates in the form of the simulator's profile."""
    search = {"web_search": str(rates.fees.web_search.scaleb(6))}

    def card(step: TokenRates) -> dict[str, str]:
        return {ours: str(step.rate(kind)) for ours, kind in _PRICES.items()} | search

    def cards(steps: Steps) -> dict[str, Any]:
        return card(steps[0]) | {
            "steps": {step.from_tokens - 1: card(step) for step in steps[1:]},
        }

    return {
        **cards(rates.standard),
        "tiers": {name: cards(steps) for name, steps in rates.tiers.items()},
        "batch": cards(rates.batch) if rates.batch else None,
    }
