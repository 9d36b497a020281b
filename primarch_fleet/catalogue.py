"""What a running fleet offers: published by its workers, read by its producers."""

from __future__ import annotations

from typing import Literal

import redis
from pydantic import BaseModel, ConfigDict

from primarch_fleet.contract import Lane
from primarch_fleet.errors import NoCatalogue, UnknownModel
from primarch_fleet.money import Price

#: Redis key of the catalogue: one JSON text.
CATALOGUE_KEY = "fleet:catalogue"


class Offer(BaseModel):
    """One lane's offer of a model: where its queue is, what it costs and how good it is."""

    model_config = ConfigDict(frozen=True)

    queue: str
    price: Price
    quality: float = 1.0
    #: The dearest that it can come to, if a fallback or another deployment answers; None: `price`.
    ceiling: Price | None = None
    #: The most tokens that one choice of an answer can have, if the fleet knows.
    max_output_tokens: int | None = None
    #: Of each deployment the tags that it has, on the realtime lane; None: they are not known.
    tags: tuple[tuple[str, ...], ...] | None = None

    @property
    def max_price(self) -> Price:
        return self.ceiling or self.price


class Model(BaseModel):
    """A model by the name that producers use, with the lanes that serve it."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["chat", "embedding"]
    lanes: dict[Lane, Offer]
    #: What the saving in a receipt is measured against.
    list_price: Price


class Limits(BaseModel):
    """What a tenant may spend, in micro-dollars, and what happens beyond; None is no limit."""

    model_config = ConfigDict(frozen=True)

    #: By UTC's days and months, and the clock of Redis.
    daily_budget: int | None = None
    monthly_budget: int | None = None
    #: The most that one request may cost on the realtime lane, by estimate.
    max_cost_realtime: int | None = None
    #: What becomes of a request for which no money is left: an error, or another lane.
    over_budget: Literal["refuse", "batch", "local"] = "refuse"
    #: Tokens reserved for an answer whose length neither the request nor the model limits.
    default_output_tokens: int = 4096
    #: Requests of the realtime and local lanes that may be under way at once, queued or running.
    max_concurrency: int | None = None
    #: Tokens of the realtime and local lanes' requests, prompts by estimate and answers by the most
    #: that they can have, that may be submitted within a minute of Redis's clock.
    tokens_per_minute: int | None = None


class LaneLimits(BaseModel):
    """How much a lane takes."""

    model_config = ConfigDict(frozen=True)

    #: Requests that may wait in one of its queues, on the batch lane with those in batches.
    max_queued: int
    #: Seconds that a producer is told to wait when there are as many and nothing is known of how
    #: fast the lane is.
    retry_after: float = 5.0


#: The tenant whose limits are those of all who are not named, of each for itself.
DEFAULT_TENANT = "default"


class Catalogue(BaseModel):
    """Everything a producer needs to check a request before it is enqueued."""

    model_config = ConfigDict(frozen=True)

    models: dict[str, Model]
    #: Seconds within which a batch answers.
    completion_window: float
    #: The largest request accepted, in bytes of JSON.
    max_request_bytes: int
    #: By tenant; without an entry, and without one for DEFAULT, a tenant has no limits.
    tenants: dict[str, Limits] = {}
    #: By lane; one without an entry takes everything.
    lanes: dict[Lane, LaneLimits] = {}
    #: The lanes that take nothing while no worker serves the queue, with the seconds that a
    #: producer is told to wait. The queues of the others keep it until a worker comes.
    needs_worker: dict[Lane, float] = {}
    #: Whether the fleet's workers say that they are alive (`health.alive_key`).
    heartbeats: bool = False
    #: Whether the batch lane may be chosen for a request that does not name it.
    auto_batch: bool = True
    #: Whether requests may have tags.
    tag_filtering: bool = True

    def limits(self, tenant_id: str) -> Limits | None:
        """A tenant's limits; None for one whose spending is neither limited nor counted."""
        return self.tenants.get(tenant_id) or self.tenants.get(DEFAULT_TENANT)

    def model(self, name: str) -> Model:
        """The model, or UnknownModel, which lists the ones there are."""
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(
                f"model: {name!r} is not served by this fleet; it serves {', '.join(self.models)}"
            ) from None

    def publish(self, client: redis.Redis) -> None:
        """Make it the fleet's catalogue; producers see it within their cache time."""
        client.set(CATALOGUE_KEY, self.model_dump_json())

    @classmethod
    def fetch(cls, client: redis.Redis) -> Catalogue:
        """The published catalogue. Raises NoCatalogue when no worker ever started here."""
        text = client.get(CATALOGUE_KEY)
        if text is None:
            raise NoCatalogue
        return cls.model_validate_json(text)
