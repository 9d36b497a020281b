"""What no section of fleet.yaml can see alone: keys that are right, and wrong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.endpoints import BATCH_ENDPOINTS, batch_endpoints
from primarch_fleet.validation import Location

if TYPE_CHECKING:
    from config.fleet import FleetConfig


def contradictions(config: FleetConfig) -> Iterator[tuple[Location, str]]:
    """Yield each contradiction: where it is, and what to change."""
    yield from _own_fallbacks(config)
    yield from _missing_batches(config)


def _own_fallbacks(config: FleetConfig) -> Iterator[tuple[Location, str]]:
    routing = config.routing
    for name in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for model, others in getattr(routing, name).items():
            if routing.resolve_alias(model) in map(routing.resolve_alias, others):
                location = ("routing", name, model)
                yield location, "a model cannot answer for itself; name another model"


def _missing_batches(config: FleetConfig) -> Iterator[tuple[Location, str]]:
    for index, deployment in enumerate(config.deployments):
        name = config.providers[deployment.provider].litellm_provider
        if deployment.batch and not batch_endpoints(deployment.kind, name):
            what = f"no batches for {deployment.kind}" if name in BATCH_ENDPOINTS else "no batches"
            yield (
                ("deployments", index, "batch"),
                f"{name} has {what}; remove it, or use a provider of: "
                f"{', '.join(sorted(BATCH_ENDPOINTS))}",
            )
