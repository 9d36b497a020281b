"""The interface between the batch lane and the providers of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from config.provider import Provider
from scheduler.model.jsonl import TranslatedRequest
from scheduler.providers.errors import BatchFault, ProviderCallFailed

#: Metadata key under which a batch carries the intent of its job.
INTENT_KEY = "fleet_intent"
#: Most pages that a scan of a provider's list reads.
MAX_PAGES = 100
#: Seconds by which the clocks of provider and store may differ.
CLOCK_SKEW_SECONDS = 3600.0

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
LIVE = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


@dataclass(frozen=True)
class Capabilities:
    """What the batches of a provider support, at every account.

    `BATCH_ENDPOINTS` in config/endpoints.py has the paths of their requests.
    """

    #: Requests, and bytes of the input file, in one batch.
    max_requests: int
    max_bytes: int
    #: The supported completion windows; None leaves that to the account.
    windows: frozenset[str] | None = None
    #: Whether a batch carries the intent; without it, a batch is recognised by its input file.
    metadata: bool = True
    #: Seconds after which the provider removes an input file; None if it cannot be told.
    input_ttl_seconds: int | None = None


@dataclass(frozen=True)
class ProviderBatch:
    """A batch as the provider describes it. Times are in Unix seconds by the provider's clock."""

    id: str
    status: str
    created_at: float
    expires_at: float | None = None
    input_file_id: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    faults: tuple[BatchFault, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    #: How many requests it has; None where only the input file tells.
    requests: int | None = None

    @property
    def intent(self) -> str:
        """The intent that it carries; empty if it carries none."""
        return self.metadata.get(INTENT_KEY, "")

    @property
    def files(self) -> list[str]:
        """The ids of its result files: responses first, then errors."""
        return [file_id for file_id in (self.output_file_id, self.error_file_id) if file_id]


class BatchPage(NamedTuple):
    """A page of the provider's list of batches, and whether there are more."""

    batches: list[ProviderBatch]
    more: bool


@dataclass(frozen=True)
class BatchFingerprint:
    """By what the batch of a job is recognised when the call that created it got no answer."""

    intent: str
    file_id: str
    #: Unix seconds by the store's clock before which it was not created.
    since: float
    requests: int
    #: Ids of the batches of other jobs.
    other_batches: frozenset[str]
    #: Whether a custom_id belongs to one of the job's requests, in its present attempt.
    has: Callable[[str], Awaitable[bool]]


class BatchProvider(Protocol):
    """An account at a provider. Every method is one call and is never retried by itself.

    All raise ProviderRefused when the call had no effect, and ProviderCallFailed when that is
    unknown.
    """

    capabilities: ClassVar[Capabilities]

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account. Raises ConfigError when its key is not set."""

    @staticmethod
    def line(custom_id: str, request: TranslatedRequest) -> dict[str, Any]:
        """Return the line of a request in an input file."""

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file and return its id.

        ProviderRefused may name, as faults, the lines that cannot be sent.
        """

    async def find_input_file(self, name: str, size: int) -> str | None:
        """Return the id of the newest complete input file of a name and of `size` bytes.

        None when the newest files do not include it, or when the account cannot list files.
        """

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Create a batch, which carries `intent` if it can. This costs money.

        Raises InputFileNotLocal when this machine does not have the file.
        """

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """Return a batch as it is now."""

    async def list(self, after: str | None) -> BatchPage:
        """Return a page of the account's batches, those after the batch `after`."""

    async def cancel(self, batch_id: str) -> None:
        """Start to cancel a batch; its responses so far stay and are charged."""

    async def download(self, file_id: str, path: Path) -> None:
        """Write a result file to `path`, completely or not at all."""

    async def matches(self, batch: ProviderBatch, fingerprint: BatchFingerprint) -> bool | None:
        """Return whether a listed batch is the one of a job; None while that cannot be known."""

    async def close(self) -> None:
        """Close the connections."""


async def find_batches(
    provider: BatchProvider, fingerprint: BatchFingerprint
) -> list[ProviderBatch]:
    """Return every batch that was created for a job, oldest first.

    Raises:
        ProviderCallFailed: None was found, but one may exist: the list could not be read far
            enough, or a running batch can be recognised only when it has ended.
    """
    found: dict[str, ProviderBatch] = {}
    undecided: list[str] = []
    async for batch in scan_list(provider, fingerprint.since - CLOCK_SKEW_SECONDS):
        is_match = await provider.matches(batch, fingerprint)
        if is_match:
            found[batch.id] = batch
        elif is_match is None:
            undecided.append(batch.id)
    if undecided and not found:
        raise ProviderCallFailed(
            f"cannot tell yet which of {len(undecided)} running batches (such as {undecided[0]}) "
            "belongs to this job"
        )
    return sorted(found.values(), key=lambda batch: (batch.created_at, batch.id))


async def scan_list(
    provider: BatchProvider, since: float, max_pages: int = MAX_PAGES
) -> AsyncGenerator[ProviderBatch, None]:
    """Yield the listed batches, each once, at least those created since a time (Unix seconds).

    Raises ProviderCallFailed when the list has more than `max_pages`.
    """
    seen: set[str] = set()
    after: str | None = None
    for _ in range(max_pages):
        page = await provider.list(after)
        new = [batch for batch in page.batches if batch.id not in seen]
        for batch in new:
            seen.add(batch.id)
            yield batch
        if not new or not page.more or _is_older(new, since):
            return
        after = new[-1].id
    raise ProviderCallFailed(f"the list of batches has more than {max_pages} pages")


def _is_older(page: list[ProviderBatch], since: float) -> bool:
    """Whether no later page can have a batch created at `since` or later.

    Azure does not document the order of its list: only a page that goes back in time ends a scan.
    """
    times = [batch.created_at for batch in page]
    return times[0] < since and times[0] > times[-1] and times == sorted(times, reverse=True)
