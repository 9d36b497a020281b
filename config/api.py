"""The HTTP API of `fleet serve`: the `api` section of fleet.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from config.section import Section
from primarch_fleet.contract import Lane

#: Where `fleet serve` and `make up` serve the API on this machine.
DEFAULT_PORT = 8700
#: The hash of a key: SHA-256 in hex digits. `fleet key` prints a new key and its hash.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: `caller` sends requests. `reader` may also see the page and the metrics, `operator` may also act
#: there: cancel, retry, replay and drop.
Role = Literal["caller", "reader", "operator"]
ROLES: tuple[Role, ...] = ("caller", "reader", "operator")


class ApiKey(Section):
    """A bearer key of the HTTP API. The file has its hash only."""

    #: A name of your choice, for logs.
    name: str = Field(min_length=1)
    #: The SHA-256 of the key in hexadecimal digits, as `fleet key` prints it.
    sha256: Sha256
    #: Whose requests these are: budgets, limits and turns are the tenant's.
    tenant: str = Field("default", min_length=1)
    #: The moment, with a time zone, from which the key is refused. Without it, the key is good
    #: until it is removed.
    expires: AwareDatetime | None = None
    #: The lanes that the key may use; without it, all.
    lanes: list[Lane] | None = None
    #: The models that the key may use, as names or patterns such as `gpt-*`; without it, all.
    models: list[str] | None = None
    #: A `caller` sends requests, a `reader` also reads metrics and the operators' page, an
    #: `operator` also acts there.
    role: Role = "caller"
    #: Whether the page shows prompts and answers to this key.
    sees_prompts: bool = False


class Webhook(Section):
    """Where a tenant is told that a background response or a batch has ended."""

    #: The tenant whose responses and batches these are.
    tenant: str = Field("default", min_length=1)
    #: The address of the receiver, which gets a POST for each event.
    url: str = Field(pattern=r"^https?://")
    #: The environment variable with the secret that signs the events, as `os.environ/NAME`. It
    #: holds `whsec_` and base64; two secrets, separated by a space, while one replaces the other.
    secret: str = Field(pattern=r"^os\.environ/\w+$")


class Api(Section):
    """The HTTP API. Without keys, it listens on this machine only."""

    #: The keys. A changed file is read within seconds, without a restart.
    keys: list[ApiKey] = []
    #: Receivers that are told when background responses and batches end.
    webhooks: list[Webhook] = []
    #: Seconds for which a call waits for its answer. A request without an `Idempotency-Key` is
    #: cancelled then.
    answer_timeout: float = Field(600.0, gt=0)
    #: Seconds that a client has to send the head of a call, and again its body.
    upload_timeout: float = Field(60.0, gt=0)
    #: Most bytes of an uploaded file: the limit of OpenAI's batch files.
    max_file_bytes: int = Field(200 * 2**20, gt=0)
    #: Most bytes of the files that a tenant has stored.
    max_stored_bytes: int = Field(2**30, gt=0)
    #: Most connections at the same time; later ones are refused with status 503.
    max_connections: int = Field(2_000, gt=0)

    @model_validator(mode="after")
    def _check_repeated(self) -> Api:
        for name in ("name", "sha256"):
            values = [getattr(key, name) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"keys: two keys have the same {name}; each needs its own")
        return self
