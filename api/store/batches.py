"""Batches of tenants: what each is about, how far it is, and which process runs it.

fleet:api:batch:<id>         hash: the BatchSpec as JSON in `spec`, its tenant in `tenant`, the
                             status, times (`created_at`, `<status>_at`, Unix seconds), counts of
                             lines (`total`, `completed`, `failed`), ids of files, errors and usage
fleet:api:batches:<tenant>   zset: ids by their creation in microseconds of Unix time
fleet:api:due_batches        zset: `<id> <tenant>` of unfinished batches, by the Unix seconds from
                             which any process may claim them: the end of the owner's lease
fleet:api:batch_owners       hash: `<id> <tenant>` -> the owner's token
fleet:api:batch_fence        string: the last token

Those of a tenant have a TTL; those of unfinished batches are removed at their end.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from api.store.files import LUA, FileStore, Upload, expiry_key, file_key, files_key, parts_key
from api.store.pages import Page, PageQuery, read_page
from api.store.webhooks import DUE as DUE_WEBHOOKS
from api.store.webhooks import WEBHOOKS, Kind, count_dropped, waiting
from config.api import Webhook
from primarch_fleet.redis_support import LuaScript

ID_PREFIX = "batch_"
#: The only window of OpenAI's API, and its seconds.
COMPLETION_WINDOW, WINDOW_SECONDS = "24h", 86_400
#: Seconds after its window for which an unfinished batch, and its input, are kept.
_GRACE_SECONDS = 86_400
#: Most batches of a tenant that are kept.
MAX_BATCHES = 10_000
#: Batches that one search for a batch to run looks at.
_MAX_SCANNED = 1_000
#: The statuses that do not change any more.
FINAL = ("completed", "failed", "expired", "cancelled")

LastStatus = Literal["completed", "failed", "expired", "cancelled"]

_DUE, _OWNERS = "fleet:api:due_batches", "fleet:api:batch_owners"
_FENCE = "fleet:api:batch_fence"
_CREATE = LuaScript.load(LUA / "create_batch.lua")
_CLAIM = LuaScript.load(LUA / "due.lua", LUA / "claim_batch.lua")
_RENEW = LuaScript.load(LUA / "renew_batch.lua")
_CANCEL = LuaScript.load(LUA / "cancel_batch.lua")
_END = LuaScript.load(LUA / "publish_file.lua", LUA / "outbox.lua", LUA / "end_batch.lua")
#: The times of OpenAI's batch object, and its other fields that are missing until they are known.
_TIMES = [
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
]
_FILES = ["output_file_id", "error_file_id"]


class BatchSpec(BaseModel):
    """What a client has asked for, and what its key may use."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    endpoint: str
    input_file_id: str
    metadata: dict[str, str] | None = None
    #: Fields of each line's request: lane, tags, user_id...
    routing: dict[str, JsonValue] = {}
    #: Patterns of the models that lines may have.
    models: list[str] = ["*"]
    #: Seconds for which output and error file are kept; None keeps them as long as results.
    output_seconds: int | None = None


@dataclass(frozen=True)
class Counts:
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    def fields(self) -> dict[str, Any]:
        """Return the fields of the batch's hash."""
        return {"total": self.total, "completed": self.completed, "failed": self.failed}


@dataclass(frozen=True)
class Batch:
    """A batch as it is now."""

    id: str
    spec: BatchSpec
    #: The fields of its hash besides `spec`.
    fields: Mapping[str, str]

    @classmethod
    def of(cls, identity: str, fields: Mapping[bytes, bytes]) -> Batch:
        """Return the batch that a hash describes."""
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        return cls(identity, BatchSpec.model_validate_json(texts.pop("spec")), texts)

    @property
    def expires_at(self) -> int:
        """Unix seconds by the server's clock."""
        return int(self.fields["expires_at"])

    def body(self) -> dict[str, Any]:
        """Return OpenAI's batch object."""
        errors = self.fields.get("errors")
        counts = {name: int(self.fields.get(name, 0)) for name in Counts().fields()}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.spec.endpoint,
            "errors": {"object": "list", "data": json.loads(errors)} if errors else None,
            "input_file_id": self.spec.input_file_id,
            "completion_window": COMPLETION_WINDOW,
            "status": self.fields["status"],
            **{name: self.fields.get(name) for name in _FILES},
            **{name: int(self.fields[name]) if name in self.fields else None for name in _TIMES},
            "request_counts": counts,
            "usage": json.loads(self.fields.get("usage", "null")),
            "metadata": self.spec.metadata,
        }


class Claim(NamedTuple):
    """The right of this process to run a batch, until its lease ends."""

    batch_id: str
    tenant: str
    token: str

    @property
    def member(self) -> str:
        """The batch in the sets of unfinished ones."""
        return f"{self.batch_id} {self.tenant}"


@dataclass(frozen=True)
class End:
    """How a batch ends."""

    status: LastStatus
    counts: Counts = Counts()
    errors: list[dict[str, Any]] | None = None
    usage: dict[str, Any] | None = None
    #: By the field of the batch that has its id.
    files: dict[str, Upload] = field(default_factory=dict)

    def fields(self) -> list[Any]:
        """Return the fields and values of the batch's hash, in turn."""
        values: dict[str, Any] = self.counts.fields()
        values |= {name: upload.id for name, upload in self.files.items()}
        values |= {"errors": json.dumps(self.errors)} if self.errors else {}
        values |= {"usage": json.dumps(self.usage)} if self.usage else {}
        return [one for pair in values.items() for one in pair]


class BatchStore:
    """The batches.

    Args:
        client: An asyncio client of Redis, with replies in bytes.
        files: Where the batches' files are.
    """

    def __init__(self, client: Any, files: FileStore) -> None:
        self._redis, self._files = client, files
        self._open_seconds = WINDOW_SECONDS + _GRACE_SECONDS + files.result_seconds

    async def create(
        self, spec: BatchSpec, idempotency_key: str | None
    ) -> tuple[Literal["created", "exists", "conflict", "no file", "full"], str]:
        """Create a batch, and return its id.

        Args:
            idempotency_key: Of the tenant: with the same key and the same spec, nothing is created.

        Returns:
            What happened, as create_batch.lua says, and the batch's id.
        """
        identity, text = _batch_id(spec.tenant, idempotency_key), spec.model_dump_json()
        file_id = spec.input_file_id
        keys = [_batch_key(identity), _batches_key(spec.tenant), _DUE]
        keys += [file_key(file_id), parts_key(file_id), expiry_key(spec.tenant)]
        arguments = [
            *(identity, spec.tenant, hashlib.sha256(text.encode()).hexdigest(), MAX_BATCHES),
            *(file_id, WINDOW_SECONDS + _GRACE_SECONDS, self._open_seconds, WINDOW_SECONDS),
            *("tenant", spec.tenant, "spec", text),
        ]
        reply = await _CREATE.run(self._redis, keys, arguments)
        return reply.decode(), identity

    async def get(self, tenant: str, identity: str) -> Batch | None:
        """Return a tenant's batch; None if there is none, or if it is another tenant's."""
        fields = await self._redis.hgetall(_batch_key(identity))
        return Batch.of(identity, fields) if fields.get(b"tenant") == tenant.encode() else None

    async def page(self, tenant: str, query: PageQuery) -> Page | None:
        """Return some of a tenant's batches; None if the query's `after` is none of them."""

        async def read(ids: Sequence[str]) -> list[dict[str, Any] | None]:
            pipe = self._redis.pipeline(transaction=False)
            for identity in ids:
                pipe.hgetall(_batch_key(identity))
            found = zip(ids, await pipe.execute(), strict=True)
            return [Batch.of(one, fields).body() if fields else None for one, fields in found]

        return await read_page(self._redis, _batches_key(tenant), read, query)

    async def cancel(self, tenant: str, identity: str) -> str | None:
        """Ask for the end of a batch; return the status that it had, None for an unknown id."""
        status = await _CANCEL.run(self._redis, [_batch_key(identity)], [tenant])
        return status.decode() if status else None

    async def claim(self, lease_seconds: float, busy: Collection[str]) -> Claim | None:
        """Claim the batch that waits longest; None if there is none.

        Args:
            busy: Tenants whose batches are left to other processes.
        """
        keys, arguments = [_DUE, _OWNERS, _FENCE], [lease_seconds, _MAX_SCANNED, *busy]
        if not (reply := await _CLAIM.run(self._redis, keys, arguments)):
            return None
        identity, _, tenant = reply[0].decode().partition(" ")
        return Claim(identity, tenant, reply[1].decode())

    async def renew(
        self,
        claim: Claim,
        lease_seconds: float,
        status: Literal["in_progress", "finalizing", ""] = "",
        counts: Counts | None = None,
    ) -> tuple[str, int] | None:
        """Keep a claim, or let any process have the batch after `lease_seconds`.

        Args:
            status: The new status, unless the batch is being cancelled.
            counts: The progress.

        Returns:
            The status, empty if the batch is gone, and the server's Unix seconds; None if another
            process has the batch.
        """
        keys = [_DUE, _OWNERS, _batch_key(claim.batch_id)]
        fields = counts.fields() if counts else {}
        arguments = [claim.member, claim.token, lease_seconds, status]
        arguments += [one for pair in fields.items() for one in pair]
        reply = await _RENEW.run(self._redis, keys, arguments)
        return (reply[0].decode(), int(reply[1])) if reply else None

    async def forget(self, claim: Claim) -> None:
        """Remove a batch that has expired from the unfinished ones."""
        pipe = self._redis.pipeline()
        pipe.zrem(_DUE, claim.member)
        pipe.hdel(_OWNERS, claim.member)
        await pipe.execute()

    async def end(
        self, claim: Claim, spec: BatchSpec, end: End, webhooks: Sequence[Webhook] = ()
    ) -> bool:
        """End a batch, make its files visible and enqueue its webhooks, in one step.

        Args:
            webhooks: Those of the configuration.

        Returns:
            False if another process has the batch; nothing has changed then.
        """
        keys = [_DUE, _OWNERS, _batch_key(claim.batch_id), file_key(spec.input_file_id)]
        keys += [files_key(claim.tenant), expiry_key(claim.tenant), WEBHOOKS, DUE_WEBHOOKS]
        for upload in end.files.values():
            keys += [file_key(upload.id), parts_key(upload.id)]
        kept = self._files.result_seconds
        times = [kept, min(spec.output_seconds or kept, kept), self._files.list_seconds]
        files = [[upload.id, upload.fields()] for upload in end.files.values()]
        arguments = [claim.member, claim.token, *times, end.status]
        kind = cast(Kind, f"batch.{end.status}")
        told = waiting(webhooks, claim.tenant, kind, claim.batch_id)
        entries = [text for entry in told for text in entry]
        arguments += [json.dumps(end.fields()), json.dumps(files), json.dumps(entries)]
        is_ended, dropped = await _END.run(self._redis, keys, arguments)
        count_dropped(dropped)
        return bool(is_ended)


def _batch_id(tenant: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return f"{ID_PREFIX}{uuid.uuid4().hex}"
    text = json.dumps([tenant, idempotency_key])
    return f"{ID_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _batch_key(identity: str) -> str:
    return f"fleet:api:batch:{identity}"


def _batches_key(tenant: str) -> str:
    return f"fleet:api:batches:{tenant}"
