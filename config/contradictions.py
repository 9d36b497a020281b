"""What no section of fleet.yaml can see alone: keys that are right, and wrong together."""

from __future__ import annotations

from collections.abc import Iterator

from config.endpoints import BATCH_ENDPOINTS, batch_endpoints
from config.fleet_sections import FleetSections
from config.listed_models import kind_of
from config.price_list import RESPONSES_PROVIDERS, RESPONSES_ROUTE, find_entry
from primarch_fleet.validation import Location


def contradictions(config: FleetSections) -> Iterator[tuple[Location, str]]:
    """Yield each contradiction: where it is, and what to change."""
    yield from _own_fallbacks(config)
    yield from _missing_batches(config)
    yield from _chats_in_batches(config)


def _own_fallbacks(config: FleetSections) -> Iterator[tuple[Location, str]]:
    routing = config.routing
    for name in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for model, others in getattr(routing, name).items():
            if routing.resolve_alias(model) in map(routing.resolve_alias, others):
                location = ("routing", name, model)
                yield location, "a model cannot answer for itself; name another model"


def _missing_batches(config: FleetSections) -> Iterator[tuple[Location, str]]:
    for index, deployment in enumerate(config.deployments):
        name = config.providers[deployment.provider].litellm_provider
        if deployment.batch and not batch_endpoints(deployment.kind, name):
            what = f"no batches for {deployment.kind}" if name in BATCH_ENDPOINTS else "no batches"
            yield (
                ("deployments", index, "batch"),
                f"{name} has {what}; remove it, or use a provider of: "
                f"{', '.join(sorted(BATCH_ENDPOINTS))}",
            )


def _chats_in_batches(config: FleetSections) -> Iterator[tuple[Location, str]]:
    """Models whose chats LiteLLM would send as responses, and names that only LiteLLM knows."""
    for index, deployment in enumerate(config.deployments):
        provider = config.providers[deployment.provider].litellm_provider
        if not deployment.batch or provider not in RESPONSES_PROVIDERS:
            continue
        model = deployment.upstream.removeprefix(RESPONSES_ROUTE)
        has_only_responses = kind_of(find_entry(provider, model) or {}) == "responses"
        if model != deployment.upstream or (has_only_responses and deployment.kind == "chat"):
            yield (
                ("deployments", index, "batch"),
                f"{deployment.upstream} answers /v1/responses only; name the model {model}, "
                "with kind: responses",
            )
