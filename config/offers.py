"""What each lane offers of each model: prices, limits and parameters, for the catalogue."""

from __future__ import annotations

from collections.abc import Iterable

from config.endpoints import batch_endpoints, endpoints
from config.engine import EngineConfig
from config.fleet_sections import FleetSections
from config.provider import Deployment
from config.provider_parameters import unsupported_parameters
from primarch_fleet.catalogue import Costs, Model, Offer
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, Lane


def models_of(config: FleetSections) -> dict[str, Model]:
    """Return all models. The first entry for a model and a lane sets the price there."""
    models: dict[str, Model] = {}

    def add(name: str, source: Deployment | EngineConfig, offers: dict[Lane, Offer]) -> None:
        if name not in models:
            models[name] = Model(kind=source.kind, lanes={}, list_price=config.list_price(name))
        lanes = {**offers, **models[name].lanes}
        models[name] = models[name].model_copy(update={"lanes": lanes})

    for deployment in config.deployments:
        offers: dict[Lane, Offer] = {"realtime": _realtime_offer(config, deployment)}
        if deployment.batch:
            provider = config.providers[deployment.provider].litellm_provider
            offers["batch"] = Offer(
                queue=BATCH_QUEUE,
                endpoints=batch_endpoints(deployment.kind, provider),
                price=config.rates(deployment).in_batches(),
                max_output_tokens=deployment.max_output_tokens,
                media=deployment.media,
                context_length=deployment.context_length,
                unsupported=_unsupported(config, [deployment]),
            )
        add(deployment.model, deployment, offers)
    for engine in config.engines:
        for name in engine.models:
            add(name, engine, {"local": engine.offer()})
    for alias, name in config.routing.model_group_alias.items():
        model = models[name]
        lanes = {lane: offer for lane, offer in model.lanes.items() if lane != "local"}
        models.setdefault(alias, model.model_copy(update={"lanes": lanes}))
    return models


def _realtime_offer(config: FleetSections, deployment: Deployment) -> Offer:
    """A deployment's price, with the highest price and length of any that may answer for it."""
    models = config.routing.possible_models(deployment.model)
    possible = [other for other in config.deployments if other.model in models]
    tags = {tuple(sorted(other.tags)) for other in config.deployments_of(deployment.model)}
    return Offer(
        queue=REALTIME_QUEUE,
        endpoints=endpoints(deployment.kind),
        price=config.rates(deployment),
        other_costs=_other_costs(config, deployment, possible),
        max_output_tokens=_longest(other.max_output_tokens for other in possible),
        media=deployment.media,
        context_length=_longest(other.context_length for other in possible),
        unsupported=_unsupported(config, config.deployments_of(deployment.model)),
        tags=tuple(sorted(tags)),
    )


def _other_costs(
    config: FleetSections, deployment: Deployment, possible: Iterable[Deployment]
) -> tuple[Costs, ...]:
    """The prices of the other deployments and fallbacks that may answer, where they differ."""
    own, *others = (
        Costs(price=config.rates(other), media=other.media) for other in (deployment, *possible)
    )
    distinct: list[Costs] = []
    for costs in others:
        if costs != own and costs not in distinct:
            distinct.append(costs)
    return tuple(distinct)


def _unsupported(config: FleetSections, deployments: list[Deployment]) -> tuple[str, ...]:
    """The parameters that each of these deployments refuses."""
    refused = [
        unsupported_parameters(deployment, config.providers[deployment.provider])
        for deployment in deployments
    ]
    return tuple(sorted(frozenset.intersection(*refused)))


def _longest(lengths: Iterable[int | None]) -> int | None:
    """The longest of the lengths; None if one of them is not known."""
    known = list(lengths)
    return None if None in known else max(filter(None, known))
