"""The seam between the batch lane and a provider of batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

#: Metadata key under which every batch carries our intent id.
INTENT = "fleet_intent"
#: Pages that a search may take before it is given up, and seconds by which clocks may differ.
PAGES, SKEW = 100, 3600.0

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
    #: A batch carries our intent; without it, a batch is known again by its input file alone.
    metadata: bool = True
    #: Seconds after which it is told to forget an input file; None: it cannot be told.
    input_life: int | None = None


class Failure(Exception):
    """A call to a provider failed; whether it took effect is not known."""


class Refused(Failure):
    """The provider said no: the call had no effect."""

    def __init__(
        self, message: str, status: int, code: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        #: Seconds that the provider asks for.
        self.retry_after = retry_after

    @property
    def of_account(self) -> bool:
        """Nothing is wrong with the call: key, rights, money or rate are."""
        billing = "billing" in self.code or "quota" in self.code
        return billing or self.status in (401, 402, 403, 429)


class Fault(NamedTuple):
    """Why a whole batch failed; `line` counts from 1 in its file, None when none is named."""

    code: str
    message: str
    line: int | None


@dataclass(frozen=True)
class Remote:
    """A batch as the provider describes it. Times in Unix seconds by the provider's clock."""

    id: str
    status: str
    created_at: float
    expires_at: float | None = None
    input_file_id: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    faults: tuple[Fault, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Its result files: the one with answers first, the one with errors after it."""
        return [one for one in (self.output_file_id, self.error_file_id) if one]


class Page(NamedTuple):
    """Some batches of the provider's list, and whether it goes on."""

    batches: list[Remote]
    more: bool


class BatchProvider(Protocol):
    """One account. Every method is one call, never repeated by itself.

    All raise Refused when the provider said no and Failure when nobody knows.
    """

    capabilities: ClassVar[Capabilities]

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file; its id."""

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> Remote:
        """Order a batch, which carries `intent` if it can. This is what costs money."""

    async def retrieve(self, batch_id: str) -> Remote:
        """A batch as it is now."""

    async def list(self, after: str | None) -> Page:
        """Batches of the account, those after the batch `after`."""

    async def cancel(self, batch_id: str) -> None:
        """Stop a batch; what was answered so far stays and is charged."""

    async def download(self, file_id: str, path: Path) -> None:
        """Write a result file to `path`, complete or not at all."""

    async def close(self) -> None:
        """Give the connections back."""


async def find(provider: BatchProvider, intent: str, file_id: str, since: float) -> list[Remote]:
    """Every batch that was made for an intent since a moment, oldest first.

    Raises Failure when the provider's list could not be read that far: not finding is then no
    proof of absence.
    """
    found: dict[str, Remote] = {}
    seen: set[str] = set()
    after: str | None = None
    for _ in range(PAGES):
        page = await provider.list(after)
        fresh = [batch for batch in page.batches if batch.id not in seen]
        seen.update(batch.id for batch in fresh)
        found.update({one.id: one for one in fresh if _made_for(one, intent, file_id)})
        if not fresh or not page.more or _past(fresh, since - SKEW):
            return sorted(found.values(), key=lambda one: (one.created_at, one.id))
        after = fresh[-1].id
    raise Failure(f"the list of batches did not end within {PAGES} pages")


def _past(page: list[Remote], since: float) -> bool:
    """Whether nothing after this page can be of `since` or later.

    Azure does not say in which order it lists: only a page that goes back in time ends a search.
    """
    times = [one.created_at for one in page]
    return times[0] < since and times[0] > times[-1] and times == sorted(times, reverse=True)


def _made_for(batch: Remote, intent: str, file_id: str) -> bool:
    return batch.metadata.get(INTENT) == intent or batch.input_file_id == file_id
