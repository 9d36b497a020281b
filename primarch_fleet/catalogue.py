"""What a running fleet offers: published by its workers, read by its producers."""

from __future__ import annotations

from typing import Literal

import redis
from pydantic import BaseModel, ConfigDict

from primarch_fleet.contract import Lane
from primarch_fleet.errors import NoCatalogue, UnknownModel
from primarch_fleet.money import Price

#: Redis key of the catalogue: one JSON text.
KEY = "fleet:catalogue"


class Offer(BaseModel):
    """One lane's offer of a model: where its queue is, what it costs and how good it is."""

    model_config = ConfigDict(frozen=True)

    queue: str
    price: Price
    quality: float = 1.0


class Model(BaseModel):
    """A model by the name that producers use, with the lanes that serve it."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["chat", "embedding"]
    lanes: dict[Lane, Offer]
    #: What the saving in a receipt is measured against.
    list_price: Price


class Catalogue(BaseModel):
    """Everything a producer needs to check a request before it is enqueued."""

    model_config = ConfigDict(frozen=True)

    models: dict[str, Model]
    #: Seconds within which a batch answers.
    completion_window: float
    #: The largest request accepted, in bytes of JSON.
    max_request_bytes: int

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
        client.set(KEY, self.model_dump_json())

    @classmethod
    def fetch(cls, client: redis.Redis) -> Catalogue:
        """The published catalogue. Raises NoCatalogue when no worker ever started here."""
        text = client.get(KEY)
        if text is None:
            raise NoCatalogue
        return cls.model_validate_json(text)
