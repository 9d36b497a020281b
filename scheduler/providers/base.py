"""The seam between the batch lane and a provider of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, Self

from config.provider import Provider
from scheduler.providers.errors import BatchFault, ProviderCallFailed

#: Metadata key under which every batch carries our intent id.
INTENT = "fleet_intent"
#: Pages that a search may take before it is given up, and seconds by which clocks may differ.
MAX_PAGES, CLOCK_SKEW_SECONDS = 100, 3600.0

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
LIVE = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


@dataclass(frozen=True)
class Capabilities:
    """What the batches of a provider hold and carry, at every account of it."""

    #: Paths of the requests that it serves in batches.
    endpoints: frozenset[str]
    #: Requests, and bytes of the input file, in one batch.
    max_requests: int
    max_bytes: int
    #: The completion windows that it knows; None leaves that to the account.
    windows: frozenset[str] | None = None
    #: A batch carries our intent; without it, a batch is known again by its input file alone.
    metadata: bool = True
    #: Seconds after which it is told to forget an input file; None: it cannot be told.
    input_life: int | None = None


@dataclass(frozen=True)
class ProviderBatch:
    """A batch as the provider describes it. Times in Unix seconds by the provider's clock."""

    id: str
    status: str
    created_at: float
    expires_at: float | None = None
    input_file_id: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    faults: tuple[BatchFault, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    #: How many requests it has; None where only its input file tells.
    requests: int | None = None

    @property
    def files(self) -> list[str]:
        """Its result files: the one with answers first, the one with errors after it."""
        return [one for one in (self.output_file_id, self.error_file_id) if one]


class BatchPage(NamedTuple):
    """Some batches of the provider's list, and whether it goes on."""

    batches: list[ProviderBatch]
    more: bool


@dataclass(frozen=True)
class BatchFingerprint:
    """A batch that may have been made for a job: all that it can be known by."""

    intent: str
    file_id: str
    #: Unix seconds by our clock before which it was not made.
    since: float
    requests: int
    #: Ids of the batches of other jobs.
    others: frozenset[str]
    #: Whether a custom_id is of one of the job's requests, in the attempt that it is in.
    has: Callable[[str], Awaitable[bool]]


class BatchProvider(Protocol):
    """One account. Every method is one call, never repeated by itself.

    All raise Refused when the provider said no and Failure when nobody knows.
    """

    capabilities: ClassVar[Capabilities]

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """The account of the configuration. Raises ConfigError when its key is not set."""

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file; its id. Refused with faults names lines that cannot be sent."""

    async def find_input_file(self, name: str, size: int) -> str | None:
        """The newest whole input file of this name and of `size` bytes; its id.

        None when there is none among the newest files, or when the account cannot list them.
        """

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Order a batch, which carries `intent` if it can. This is what costs money.

        Raises Elsewhere when the file cannot be had on this machine.
        """

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """A batch as it is now."""

    async def list(self, after: str | None) -> BatchPage:
        """Batches of the account, those after the batch `after`."""

    async def cancel(self, batch_id: str) -> None:
        """Stop a batch; what was answered so far stays and is charged."""

    async def download(self, file_id: str, path: Path) -> None:
        """Write a result file to `path`, complete or not at all."""

    async def matches(self, remote: ProviderBatch, sought: BatchFingerprint) -> bool | None:
        """Whether a batch of the list is the one sought; None while nobody can know."""

    async def close(self) -> None:
        """Give the connections back."""


async def find_batches(provider: BatchProvider, sought: BatchFingerprint) -> list[ProviderBatch]:
    """Every batch that was made for a job since a moment, oldest first.

    Raises Failure when none was found and that is no proof of absence: the provider's list could
    not be read that far, or only the end of a batch will tell whether it is the one.
    """
    found: dict[str, ProviderBatch] = {}
    doubtful: list[str] = []
    async for batch in scan_list(provider, sought.since - CLOCK_SKEW_SECONDS):
        made = await provider.matches(batch, sought)
        if made:
            found[batch.id] = batch
        elif made is None:
            doubtful.append(batch.id)
    if doubtful and not found:
        raise ProviderCallFailed(
            f"{len(doubtful)} batches may be it until they end: {doubtful[0]} is one"
        )
    return sorted(found.values(), key=lambda one: (one.created_at, one.id))


async def scan_list(provider: BatchProvider, since: float) -> AsyncGenerator[ProviderBatch, None]:
    """The batches of the list, each once, at least those made since a moment.

    Raises Failure when it does not end within PAGES.
    """
    seen: set[str] = set()
    after: str | None = None
    for _ in range(MAX_PAGES):
        page = await provider.list(after)
        fresh = [batch for batch in page.batches if batch.id not in seen]
        for batch in fresh:
            seen.add(batch.id)
            yield batch
        if not fresh or not page.more or _past(fresh, since):
            return
        after = fresh[-1].id
    raise ProviderCallFailed(f"the list of batches did not end within {MAX_PAGES} pages")


def _past(page: list[ProviderBatch], since: float) -> bool:
    """Whether nothing after this page can be of `since` or later.

    Azure does not say in which order it lists: only a page that goes back in time ends a search.
    """
    times = [one.created_at for one in page]
    return times[0] < since and times[0] > times[-1] and times == sorted(times, reverse=True)
