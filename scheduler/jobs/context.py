"""The dependencies that the stages of a job share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from config.batch import Batch
from primarch_fleet.contract import Receipt
from scheduler.jobs.backoff import Backoff
from scheduler.providers.request_lines import LineEncoder
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore


@dataclass(frozen=True)
class BatchContext:
    """Stores, lines, policy and backoff of the batch lane, and a folder for the files of jobs."""

    store: Store
    blobs: BlobStore
    lines: LineEncoder
    policy: Batch
    backoff: Backoff
    folder: Path

    @classmethod
    def from_policy(
        cls, store: Store, blobs: BlobStore, lines: LineEncoder, policy: Batch, folder: Path
    ) -> BatchContext:
        """Return a context with the policy's poll intervals."""
        backoff = Backoff(policy.poll_interval, policy.poll_interval_max)
        return cls(store, blobs, lines, policy, backoff, folder)


@dataclass(frozen=True)
class Observers:
    """Callbacks for metrics."""

    #: Called with the receipt of each answered request.
    on_receipt: Callable[[Receipt], None] = lambda _: None
    #: Called for each closed job with its age in hours, its size in requests, and the tenants who
    #: got responses from it.
    on_batch_closed: Callable[[float, int, Iterable[str]], None] = lambda *_: None
