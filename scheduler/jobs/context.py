"""What the parts of the batch lane share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from config.fleet import Batch
from primarch_fleet.contract import Receipt
from scheduler.jobs.backoff import Backoff
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Store


@dataclass(frozen=True)
class BatchContext:
    """The lane's memory, in Redis and outside of it, its policy, its waits, and the folder for
    files that a job needs.
    """

    store: Store
    blobs: BlobStore
    policy: Batch
    backoff: Backoff
    folder: Path

    @classmethod
    def from_policy(
        cls, store: Store, bodies: BlobStore, policy: Batch, folder: Path
    ) -> BatchContext:
        """A desk with the waits that the policy asks for."""
        pace = Backoff(policy.poll_interval, policy.poll_interval_max)
        return cls(store, bodies, policy, pace, folder)


@dataclass(frozen=True)
class Observers:
    """Who is told, for the metrics."""

    #: Of each answered request.
    on_receipt: Callable[[Receipt], None] = lambda _: None
    #: Of each closed job: hours since it was cut, its size, the tenants who got answers from it.
    on_batch_closed: Callable[[float, int, Iterable[str]], None] = lambda *_: None
