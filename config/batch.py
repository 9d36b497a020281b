"""When batches are created and how they are followed: the `batch` section of fleet.yaml."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field

from config.section import Section

SECONDS_PER_UNIT = {"h": 3600.0, "d": 86_400.0}


class Batch(Section):
    """When to create a batch and how to follow it. Times in seconds.

    Limits are those of OpenAI's Batch guide: 50,000 requests and 200 MB. The defaults leave room.
    """

    #: `lane: auto` may choose the batch lane. False: only requests that name it go there, and
    #: requests over their tenant's budget with `over_budget: batch`.
    auto: bool = True

    #: Most requests of a batch.
    max_requests: int = Field(45_000, gt=0, le=50_000)
    #: Most texts to embed in a batch, of all its requests together.
    max_inputs: int = Field(45_000, gt=0, le=50_000)
    #: Most bytes of a batch's input file.
    max_bytes: int = Field(190_000_000, gt=0, le=200_000_000)
    #: Seconds after which a batch is created for the oldest waiting request.
    max_wait: float = Field(300.0, ge=0)
    #: A batch is created at once for a deadline that is nearer than the completion window plus this
    #: many seconds.
    margin: float = Field(3600.0, ge=0)
    #: Fewer requests than this do not make a batch because of a deadline: requests that cannot wait
    #: for more are promoted to the realtime lane, at its price. 1: none is promoted for this.
    min_requests: int = Field(1, gt=0)
    #: Seconds before its deadline at which a request that still waits for a batch is promoted to
    #: the realtime lane, if its max_cost allows. 0: never; the request fails at its deadline.
    promote_before: float = Field(900.0, ge=0)
    #: Share of `batch_enqueued_token_limit` to use, since token counts are estimates. Above 0 to 1.
    token_share: float = Field(0.9, gt=0, le=1)
    #: Time within which the provider answers a batch, in hours or days: `24h`, `2d`. OpenAI, Azure
    #: and Anthropic only have 24h.
    completion_window: str = Field("24h", pattern=r"^[1-9][0-9]*[hd]$")
    #: Share of the price in real time that a batch costs. Above 0 to 1. Without it, what the price
    #: list says, or half.
    discount: Decimal | None = Field(None, gt=0, le=1)
    #: Seconds between two runs of the scheduler that create batches.
    aggregate_interval: float = Field(5.0, gt=0)
    #: Seconds after which a live batch is polled first; each next wait is 1.5 times as long.
    poll_interval: float = Field(15.0, gt=0)
    #: Most seconds between two polls of a batch.
    poll_interval_max: float = Field(300.0, gt=0)
    #: A batch whose creation had no known outcome is created again when the provider's list has not
    #: shown it for so many seconds: a new batch may be missing from the list for a while.
    list_lag: float = Field(300.0, ge=0)
    #: A batch or file is lost when the provider has not found it for so many seconds: its requests
    #: go into another batch.
    lost_after: float = Field(6 * 3600.0, gt=0)
    #: Bytes above which the body of a request or an answer is stored at FLEET_BODIES, if that is
    #: set; Redis then holds a reference to it.
    body_limit: int = Field(262_144, gt=0)
    #: Most attempts of one request that fail at the provider or the model.
    max_attempts: int = Field(3, gt=0)

    @property
    def window_seconds(self) -> float:
        """The completion window."""
        return int(self.completion_window[:-1]) * SECONDS_PER_UNIT[self.completion_window[-1]]
