"""The settings of a simulated provider: models, prices, latency, faults and batch times."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from workers.onebox.simulator.rule import Rule, Seconds, Section

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
Price = Annotated[Decimal, Field(ge=0, max_digits=15, decimal_places=9, allow_inf_nan=False)]


class Latency(Section):
    """Seconds until an answer: uniform in mean +- jitter, plus a time per output token."""

    mean: Seconds = 0.0
    jitter: Seconds = 0.0
    time_per_token: Seconds = 0.0


class Rates(Section):
    """Prices in micro-dollars per token, the same number as dollars per million tokens.

    Tokens of a kind without a price of its own cost as much as other input or output. `steps` has
    the prices of requests whose prompt has more tokens than the key. `web_search` is in
    micro-dollars per search.
    """

    input: Price = Decimal(0)
    output: Price = Decimal(0)
    cached_input: Price | None = None
    cache_write_5m: Price | None = None
    cache_write_1h: Price | None = None
    audio_input: Price | None = None
    image_input: Price | None = None
    audio_output: Price | None = None
    reasoning: Price | None = None
    web_search: Price = Decimal(0)
    steps: dict[PositiveInt, "Rates"] = {}


class Model(Rates):
    """A model of the provider, with its prices.

    A model of the kind "responses" has no chat completions. `tiers` has the prices of service tiers
    by name; a tier that is not there is answered, and charged, as "default". `batch` has the prices
    in batches, by default half of the others. `enqueued_token_limit` bounds the prompt tokens of
    all its running batches. Prompts of at least `prompt_cache` tokens are cached; without it none
    is. Each choice has `reasoning_tokens`, which are part of its limit.
    """

    kind: Literal["chat", "responses", "embedding", "moderation"] = "chat"
    prompt_cache: PositiveInt | None = None
    reasoning_tokens: NonNegativeInt = 0
    tiers: dict[str, Rates] = {}
    batch: Rates | None = None
    latency: Latency | None = None
    enqueued_token_limit: PositiveInt | None = None


class Fault(Rule):
    """A fault rule: the requests that it hits fail.

    Effect on a call (scope "call"): after `delay` seconds, an error with `status`, or with `drop`:
    - "before_response": the connection closes and the call has no effect,
    - "after_commit": the connection closes after the call took effect; with a `status`, that error
      is sent instead,
    - "mid_stream": the connection closes after half of the response,
    - "short": half of the response is sent as if it were complete,
    - "garbled": half of the response is sent, and other bytes in place of the second half.
    A rule with only a `delay` answers late.

    Effect on a batch line (scope "line"): with `status`, an error response (0: an empty one, as of
    a lost request); with only `code`, an error as if the line was not executed. `write` changes
    how the result is written:
    - "missing", "duplicate", "corrupt" (cut off in the middle),
    - "unknown": one more line with a custom_id that is not in the batch,
    - "both": one more line in the error file,
    - "as_text": the body is a string with JSON,
    - "error_body": status 200 with an error as the body,
    - "refusal": the model's refusal,
    - "filtered": the text is removed by a content filter.

    Effect on the validation of a line (scope "validation"): the whole batch fails with `code`;
    `names_line` says whether the error has the line's number.
    """

    status: Literal[0] | Annotated[int, Field(ge=400, le=599)] | None = None
    code: str | None = None
    message: str = "Simulated fault."
    retry_after: Seconds | None = None
    delay: Seconds = 0.0
    drop: Literal["before_response", "after_commit", "mid_stream", "short", "garbled"] | None = None
    write: Write | None = None
    names_line: bool = True

    @model_validator(mode="after")
    def _check_effect(self) -> "Fault":
        if self.scope == "call":
            self._check_call_rule()
        else:
            self._check_line_rule()
        return self

    def _check_call_rule(self) -> None:
        if self.write is not None or self.status == 0:
            raise ValueError("write and status 0 need scope line")
        if self.status is None and self.drop is None and self.delay == 0:
            raise ValueError("scope call needs status, drop or delay")

    def _check_line_rule(self) -> None:
        if self.drop is not None or self.delay or self.retry_after is not None:
            raise ValueError("drop, delay and retry_after need scope call")
        if self.scope == "validation":
            if self.code is None or self.status is not None or self.write is not None:
                raise ValueError("scope validation needs code, without status or write")
        elif self.status is None and self.code is None and self.write is None:
            raise ValueError("scope line needs status, code or write")


class BatchProfile(Section):
    """The seconds that a batch spends in each status, and the limits of batches.

    Lines finish evenly over `in_progress`. With `expire_at_fraction`, work stops at that share of
    the lines, and the batch expires `expires_late` seconds after its `completion_window`.
    `list_lag` hides a new batch from the list for so many seconds, not from retrieval. `empty_ids`
    writes "" for a file id that would be null. `status_names` replaces the names of statuses.
    """

    validating: Seconds = 1.0
    in_progress: Seconds = 5.0
    finalizing: Seconds = 1.0
    cancelling: Seconds = 1.0
    completion_window: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86_400.0
    expire_at_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    expires_late: Seconds = 0.0
    list_lag: Seconds = 0.0
    status_names: dict[str, str] = {}
    empty_ids: bool = False
    max_requests: PositiveInt = 50_000
    max_embedding_inputs: PositiveInt = 50_000
    max_bytes: PositiveInt = 209_715_200


class Webhook(Section):
    """The receiver of webhooks of ended batches; `secret` is `whsec_` and base64."""

    url: str
    secret: str = Field(repr=False)


class Profile(Section):
    """All settings; every field has a default.

    Without `models`, any name is a free model of either kind. Without `api_keys`, any key is
    accepted. Webhooks are sent on POST /simulator/webhooks, each until its receiver accepts it.
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
        """Read a JSON file. Raises OSError or ValidationError."""
        return cls.model_validate_json(path.read_bytes())

    def prices(self, model: str) -> Model:
        """The prices of `model`; free if it is not in the profile."""
        return self.models.get(model, _FREE)

    def latency_of(self, model: str) -> Latency:
        """The latency of `model`: its own, or the provider's."""
        return self.prices(model).latency or self.latency


_FREE = Model()
