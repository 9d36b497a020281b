"""Who serves a group of requests, and at which prices."""

from __future__ import annotations

from config.fleet import FleetConfig
from config.provider import Deployment
from scheduler.model.job import JobPricing, RequestGroup


def pricing_of(config: FleetConfig, group: RequestGroup) -> JobPricing | None:
    """Return the terms of a group's jobs; None when no deployment serves it."""
    for deployment in config.deployments:
        if deployment.batch and _serves(deployment, group):
            token_limit = deployment.batch_enqueued_token_limit or 0
            return JobPricing(
                deployment=deployment.id,
                upstream=deployment.upstream,
                litellm_provider=config.providers[group.provider].litellm_provider,
                price=config.rates(deployment).in_batches(),
                list_price=config.list_price(group.model),
                simulated=config.providers[group.provider].simulated,
                token_budget=int(token_limit * config.batch.token_share),
            )
    return None


def _serves(deployment: Deployment, group: RequestGroup) -> bool:
    return (deployment.provider, deployment.model) == (group.provider, group.model)
