"""What the fleet of a chaos run is configured with: everything is short."""

from __future__ import annotations

from typing import Any

from workers.onebox.simulator.profile import BatchProfile, Fault, Latency, Model, Profile

#: A model of the provider, on the realtime and the batch lane, and the model of the engine.
HOSTED, OWN = "gpt-4o-mini", "own"
#: The tenants: both have budgets that suffice.
TENANTS = ("alpha", "beta")
#: Seconds after which another worker takes over the tasks of a dead one.
VISIBILITY_TIMEOUT_SECONDS = 5.0
DRAIN_SECONDS = 3.0
#: Seconds of the simulated engine for a token.
SECONDS_PER_TOKEN = 0.05
#: The share of calls, and of lines of batches, that the provider refuses for good or for a moment.
REFUSED_SHARE = 0.01

PROFILE = Profile(
    models={HOSTED: Model(input="0.15", output="0.60")},
    latency=Latency(mean=0.3, jitter=0.2, time_per_token=0.02),
    batch=BatchProfile(validating=0.2, in_progress=1.0, finalizing=0.2, cancelling=0.2),
    faults=(
        Fault(endpoint="chat.completions", status=503, probability=REFUSED_SHARE),
        Fault(endpoint="chat.completions", status=400, probability=REFUSED_SHARE),
        Fault(scope="line", status=400, probability=REFUSED_SHARE),
        Fault(endpoint="batches.create", drop="after_commit", probability=0.1),
        Fault(endpoint="files.create", drop="after_commit", probability=0.1),
    ),
)


def fleet_config() -> dict[str, Any]:
    """The fleet's configuration file."""
    price = {"input": "0.15", "output": "0.60"}
    return {
        "providers": {
            "openai": {
                "litellm_provider": "openai",
                "api_key": "os.environ/CHAOS_KEY",
                "api_base": "os.environ/CHAOS_PROVIDER",
            }
        },
        "deployments": [
            {
                "id": "hosted",
                "model": HOSTED,
                "provider": "openai",
                "upstream": HOSTED,
                "price": price,
                "batch": True,
            }
        ],
        "engines": [
            {"model": OWN, "engine": "simulated", "price": {"input": "0.01", "output": "0.02"}}
        ],
        "batch": {
            "max_wait": 1,
            "aggregate_interval": 0.5,
            "poll_interval": 0.5,
            "poll_interval_max": 2,
            "list_lag": 2,
        },
        "tenants": {name: {"monthly_budget": "1000"} for name in TENANTS},
        "routing": {"num_retries": 3, "disable_cooldowns": True},
    }


def worker_env(folder: str, url: str, provider: str) -> dict[str, str]:
    """The environment of each process of the fleet."""
    return {
        "FLEET_REDIS_URL": url,
        "FLEET_CONFIG": f"{folder}/fleet.yaml",
        "FLEET_DATA_DIR": folder,
        "FLEET_VISIBILITY_TIMEOUT": str(VISIBILITY_TIMEOUT_SECONDS),
        "FLEET_DRAIN_TIMEOUT": str(DRAIN_SECONDS),
        "FLEET_CONCURRENCY": "50",
        "FLEET_ENGINE": OWN,
        "CHAOS_PROVIDER": provider,
        "CHAOS_FOLDER": folder,
    }
