"""The catalogue of a running fleet: its models, prices and limits.

Workers publish it in Redis, producers read it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import redis
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from primarch_fleet.contract import Lane, ModelKind
from primarch_fleet.errors import NoCatalogue, UnknownModel
from primarch_fleet.prices import Rates, TokenRates
from primarch_fleet.prompt_size import MediaTokens

#: The name of a model's or an offer's rates on the wire.
_RATES = "rates"
#: Redis key of the catalogue, a string with JSON.
CATALOGUE_KEY = "fleet:catalogue"


class _Priced(BaseModel):
    """Rates in a field whose name older producers read as two prices, `input` and `output`."""

    #: The field.
    rates_field: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _read_rates(cls, data: Any) -> Any:
        if not isinstance(data, dict) or _RATES not in data:
            return data
        rest = {name: value for name, value in data.items() if name != _RATES}
        return rest | {cls.rates_field: data[_RATES]}

    @model_serializer(mode="wrap")
    def _write_rates(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        base: TokenRates = getattr(self, self.rates_field).base
        older = {"input": str(base.input), "output": str(base.output)}
        return data | {_RATES: data[self.rates_field], self.rates_field: older}


class Costs(BaseModel):
    """What a request costs where it may be answered: the prices, and what media count as."""

    model_config = ConfigDict(frozen=True)

    price: Rates
    media: MediaTokens = MediaTokens()


class Offer(_Priced):
    """How one lane serves a model: its queue, price and quality."""

    model_config = ConfigDict(frozen=True)
    rates_field: ClassVar[str] = "price"

    queue: str
    price: Rates
    #: From 0 to 1; requests may ask for a minimum.
    quality: float = 1.0
    #: What a request may cost elsewhere: at fallbacks and at other deployments.
    other_costs: tuple[Costs, ...] = ()
    #: The token limit of one choice of an answer; None if it is not known.
    max_output_tokens: int | None = None
    #: What a picture or a sound in a prompt counts as, at most.
    media: MediaTokens = MediaTokens()
    #: Most tokens of a prompt, at the deployment that takes most; None if it is not known.
    context_length: int | None = None
    #: Parameters of OpenAI's body that no deployment of the model on the lane supports.
    unsupported: tuple[str, ...] = ()
    #: The paths of the requests that it serves; None if they are not known.
    endpoints: tuple[str, ...] | None = None
    #: The tags of each deployment on the realtime lane; None if they are not known.
    tags: tuple[tuple[str, ...], ...] | None = None

    @cached_property
    def costs(self) -> tuple[Costs, ...]:
        """Everything that a request may cost; the offer's own comes first."""
        return (Costs(price=self.price, media=self.media), *self.other_costs)

    @cached_property
    def prompt_bound(self) -> int | None:
        """The most tokens of a prompt; None if prices show that there are longer ones.

        Claude's longer context is a header's to choose, so the price list has the shorter one.
        """
        known = self.context_length
        steps = [step.from_tokens for costs in self.costs for step in costs.price.standard]
        return None if known is None or max(steps) > known else known

    def __copy__(self) -> Self:
        # `model_copy` changes fields of the copy afterwards.
        copied = super().__copy__()
        for computed in ("costs", "prompt_bound"):
            copied.__dict__.pop(computed, None)
        return copied


class Model(_Priced):
    """A model and the lanes that serve it."""

    model_config = ConfigDict(frozen=True)
    rates_field: ClassVar[str] = "list_price"

    kind: ModelKind
    lanes: dict[Lane, Offer]
    #: The price with which a receipt compares the cost.
    list_price: Rates


class CatalogueDeployment(BaseModel):
    """A deployment of the realtime lane: one account that serves one model."""

    model_config = ConfigDict(frozen=True)

    id: str
    #: The name that producers use.
    model: str
    account: str
    region: str | None = None


class Limits(BaseModel):
    """The limits of a tenant; amounts are nano-dollars, None is no limit."""

    model_config = ConfigDict(frozen=True)

    #: Per UTC day and UTC month, by the clock of Redis.
    daily_budget_nanousd: int | None = None
    monthly_budget_nanousd: int | None = None
    #: Limit for the estimated cost of one request on the realtime lane.
    max_cost_realtime_nanousd: int | None = None
    #: A request that the budget has no room for is refused or moved to this lane.
    over_budget: Literal["refuse", "batch", "local"] = "refuse"
    #: Tokens to expect of an answer whose length the request does not limit, or the model's limit
    #: if that is lower; also the tokens to reserve if that is not known.
    default_output_tokens: int = 4096
    #: Requests of the realtime and local lanes that may be queued or running at the same time.
    max_concurrency: int | None = None
    #: Tokens of the realtime and local lanes that may be submitted within one minute of Redis's
    #: clock: estimated tokens of the prompts and of the answers.
    tokens_per_minute: int | None = None


class LaneLimits(BaseModel):
    """The limits of a lane."""

    model_config = ConfigDict(frozen=True)

    #: Requests that may wait in one of its queues. Includes requests in batches on the batch lane.
    max_queued: int
    #: Seconds after which a producer may retry when the queue is full and its workers do not report
    #: their throughput.
    retry_after: float = 5.0


#: The tenant whose limits apply to each tenant without limits of its own.
DEFAULT_TENANT = "default"


class Catalogue(BaseModel):
    """Everything that a producer needs to check and route a request."""

    model_config = ConfigDict(frozen=True)

    models: dict[str, Model]
    #: Seconds within which a batch is answered.
    completion_window: float
    #: The largest request accepted, in bytes of JSON.
    max_request_bytes: int
    #: Limits by tenant; a tenant that is not named has those of DEFAULT_TENANT, if there are any.
    tenants: dict[str, Limits] = {}
    #: Limits by lane; a lane without limits accepts every request.
    lanes: dict[Lane, LaneLimits] = {}
    #: The lanes that reject requests while no worker serves their queue, with the seconds after
    #: which a producer may retry. The queues of other lanes keep requests until a worker starts.
    needs_worker: dict[Lane, float] = {}
    #: Whether workers send heartbeats (`lane_health.heartbeat_key`).
    heartbeats: bool = False
    #: Whether `lane="auto"` may choose the batch lane.
    auto_batch: bool = True
    #: Seconds that a cost-sensitive request must be able to wait for the flex tier; None: never.
    flex_seconds: float | None = None
    #: Whether requests may have tags.
    tag_filtering: bool = True
    #: Parameters that the local lane's engines honour, by endpoint; requests for another endpoint
    #: are not checked.
    engine_parameters: dict[str, tuple[str, ...]] = {}
    #: Names of headers that requests may set, in lower case.
    extra_headers: tuple[str, ...] = ()
    #: Whether tenants share the prefix caches of engines.
    share_prefix_cache: bool = False
    #: For operators; None if workers of an older version have published the catalogue.
    deployments: tuple[CatalogueDeployment, ...] | None = None

    def limits(self, tenant_id: str) -> Limits | None:
        """Return a tenant's limits; None for a tenant whose spending is not counted."""
        return self.tenants.get(tenant_id) or self.tenants.get(DEFAULT_TENANT)

    @property
    def queues(self) -> list[str]:
        """The names of the queues of all lanes."""
        return sorted({offer.queue for one in self.models.values() for offer in one.lanes.values()})

    def model(self, name: str) -> Model:
        """Return a model by name.

        Raises:
            UnknownModel: The fleet does not serve it. The message lists the models that it serves.
        """
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(
                f"model: {name!r} is not served by this fleet; it serves {', '.join(self.models)}"
            ) from None

    def publish(self, client: redis.Redis) -> None:
        """Replace the published catalogue; producers see it when their cached copy expires."""
        client.set(CATALOGUE_KEY, self.model_dump_json(exclude_none=True))

    @classmethod
    def fetch(cls, client: redis.Redis) -> Catalogue:
        """Read the published catalogue.

        Raises:
            NoCatalogue: No worker has published one at this broker.
        """
        return cls.parse(client.get(CATALOGUE_KEY))

    @classmethod
    def parse(cls, text: Any) -> Catalogue:
        """Decode the published catalogue. Raises NoCatalogue for None."""
        if text is None:
            raise NoCatalogue
        return cls.model_validate_json(text)
