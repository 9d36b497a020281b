"""How one simulated provider behaves: models, prices, latency, faults and batch times."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

Endpoint = Literal[
    "chat.completions",
    "embeddings",
    "models.list",
    "files.create",
    "files.list",
    "files.retrieve",
    "files.content",
    "files.delete",
    "batches.create",
    "batches.list",
    "batches.retrieve",
    "batches.cancel",
]
Scope = Literal["call", "line", "validation"]
Write = Literal[
    "missing",
    "duplicate",
    "corrupt",
    "unknown",
    "both",
    "as_text",
    "error_body",
    "refusal",
    "filtered",
]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Price = Annotated[Decimal, Field(ge=0, max_digits=15, decimal_places=9, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(_Part):
    """Seconds until an answer: uniform in mean ± jitter, plus a time per output token."""

    mean: Seconds = 0.0
    jitter: Seconds = 0.0
    time_per_token: Seconds = 0.0


class Model(_Part):
    """A model that exists.

    `input` and `output` are micro-dollars per token, which is the same number as dollars per
    million tokens. `enqueued_token_limit` bounds the prompt tokens of all its live batches.
    """

    kind: Literal["chat", "embedding"] = "chat"
    input: Price = Decimal(0)
    output: Price = Decimal(0)
    latency: Latency | None = None
    enqueued_token_limit: PositiveInt | None = None


class Fault(_Part):
    """One rule: which requests it meets, on which of them it strikes, and what then happens.

    It meets a request when all of `scope`, `endpoint`, `model` and `contains` (verbatim in the
    body, in the uploaded file, or in the path and query of a call without a body) hold; an absent
    field holds always. Of those it strikes the `first` so many, each `every`-th, with a seeded
    `probability`, and at most so many `times`; all that are given must hold.

    On a call: wait `delay` seconds, then refuse with `status`; or drop the connection
    "before_response" (nothing was done), "after_commit" (all was done, no answer) or "mid_stream"
    (half an answer); "short" sends half an answer as if it were all, and "garbled" half an answer
    and as many other bytes as are left. A `status` with "after_commit" is sent after all was done.
    A rule with a `delay` alone answers late.

    On a batch line: refuse with `status` (0: the empty answer of a lost request), or without
    `status` but with `code`, fail as if never executed. `write` spoils how the line reaches its
    file: "missing", "duplicate", "corrupt" (cut short), "unknown" (one more line, under a custom_id
    nobody sent), "both" (one more line, in the error file), "as_text" (a body that is JSON in a
    text), "error_body" (status 200 around an error), "refusal" (the model says that it will not),
    or "filtered" (its text is held back).

    On the validation of a line: fail the whole batch with `code`, naming the line or not.
    """

    scope: Scope = "call"
    endpoint: Endpoint | None = None
    model: str | None = None
    contains: str | None = None
    first: PositiveInt | None = None
    every: PositiveInt | None = None
    times: PositiveInt | None = None
    probability: Annotated[float, Field(ge=0, le=1)] | None = None

    status: Literal[0] | Annotated[int, Field(ge=400, le=599)] | None = None
    code: str | None = None
    message: str = "Simulated fault."
    retry_after: Seconds | None = None
    delay: Seconds = 0.0
    drop: Literal["before_response", "after_commit", "mid_stream", "short", "garbled"] | None = None
    write: Write | None = None
    names_line: bool = True

    @model_validator(mode="after")
    def _has_an_effect_in_its_scope(self) -> "Fault":
        if self.scope == "call":
            self._refuse_call_rule_without_effect()
        else:
            self._refuse_line_rule_without_effect()
        return self

    def _refuse_call_rule_without_effect(self) -> None:
        if self.write is not None or self.status == 0:
            raise ValueError("write and status 0 are for rules with scope line")
        if self.status is None and self.drop is None and self.delay == 0:
            raise ValueError("a rule with scope call needs status, drop or delay")

    def _refuse_line_rule_without_effect(self) -> None:
        if self.drop is not None or self.delay or self.retry_after is not None:
            raise ValueError("drop, delay and retry_after are for rules with scope call")
        if self.scope == "validation":
            if self.code is None or self.status is not None or self.write is not None:
                raise ValueError("a rule with scope validation needs code, and no status or write")
        elif self.status is None and self.code is None and self.write is None:
            raise ValueError("a rule with scope line needs status, code or write")


class BatchProfile(_Part):
    """Seconds a batch spends in each status, and the limits it is held to.

    Lines finish evenly over `in_progress`. With `expire_at_fraction` work stops at that share of
    the lines, and the batch expires `expires_late` seconds after `completion_window` is over.
    `list_lag` hides a new batch from the list, not from retrieval. `empty_ids` writes "" for a file
    id that would be null, `says` other words for statuses.
    """

    validating: Seconds = 1.0
    in_progress: Seconds = 5.0
    finalizing: Seconds = 1.0
    cancelling: Seconds = 1.0
    completion_window: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86_400.0
    expire_at_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    expires_late: Seconds = 0.0
    list_lag: Seconds = 0.0
    says: dict[str, str] = {}
    empty_ids: bool = False
    max_requests: PositiveInt = 50_000
    max_embedding_inputs: PositiveInt = 50_000
    max_bytes: PositiveInt = 209_715_200


class Webhook(_Part):
    """Who is told of batches that have ended; `secret` is `whsec_` and base64."""

    url: str
    secret: str = Field(repr=False)


class Profile(_Part):
    """The whole of it; every field has a default.

    Without `models` any name is a model, of either kind, at no charge. Without `api_keys` any key
    is accepted. Webhooks are sent when the simulator is told to, each until it is taken.
    """

    seed: NonNegativeInt = 0
    api_keys: frozenset[str] = frozenset()
    models: dict[str, Model] = {}
    latency: Latency = Latency()
    faults: tuple[Fault, ...] = ()
    batch: BatchProfile = BatchProfile()
    webhook: Webhook | None = None

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read JSON; OSError where there is no such file, ValidationError where it is wrong."""
        return cls.model_validate_json(path.read_bytes())

    def prices(self, model: str) -> Model:
        """The entry of `model`, or a free one."""
        return self.models.get(model, _FREE)

    def latency_of(self, model: str) -> Latency:
        """The latency of `model`: its own, or everyone's."""
        return self.prices(model).latency or self.latency


_FREE = Model()
