"""The seam between the batch lane and a provider of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, Self

from config.fleet import Provider

#: Metadata key under which every batch carries our intent id.
INTENT = "fleet_intent"
#: Statuses after which nobody knows whether the call took effect, besides all of 500 and more.
UNKNOWN = frozenset({408, 409})
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


class ProviderCallFailed(Exception):
    """A call to a provider failed; whether it took effect is not known."""


class BatchFault(NamedTuple):
    """Why a whole batch failed; `line` counts from 1 in its file, None when none is named."""

    code: str
    message: str
    line: int | None


class ProviderRefused(ProviderCallFailed):
    """The provider said no: the call had no effect."""

    def __init__(
        self,
        message: str,
        status: int,
        code: str = "",
        retry_after: float | None = None,
        faults: tuple[BatchFault, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        #: Seconds that the provider asks for.
        self.retry_after = retry_after
        #: The lines that are to blame; the others may be sent without them.
        self.faults = faults

    @property
    def of_account(self) -> bool:
        """Nothing is wrong with the call: key, rights, money or rate are."""
        billing = "billing" in self.code or "quota" in self.code
        return billing or self.status in (401, 402, 403, 429)


class InputFileNotLocal(ProviderRefused):
    """The input file is kept where it was written, which is another machine: write it here."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"{file_id} is not on this machine", 404)


def error_from_status(
    status: int, message: str, code: str, headers: Mapping[str, str]
) -> ProviderCallFailed:
    """What an answer with an HTTP error status says: Refused, or a Failure that leaves it open."""
    if status >= 500 or status in UNKNOWN:
        return ProviderCallFailed(f"HTTP {status}: {message}")
    return ProviderRefused(message, status, code, _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; None for none, and for a date, which clocks would have to agree on."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


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
    def of(cls, provider: Provider) -> Self:
        """The account of the configuration. Raises ConfigError when its key is not set."""

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file; its id. Refused with faults names lines that cannot be sent."""

    async def uploaded(self, name: str, size: int) -> str | None:
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
