"""Files of tenants: their content in parts in Redis, and what OpenAI's API says of them.

fleet:api:file:<id>             hash: tenant, filename, purpose, bytes, created_at, expires_at (Unix
                                seconds), and `readers`, the number of batches that read the file
fleet:api:file_parts:<id>       hash: number of the part from 0 -> at most PART_BYTES of content
fleet:api:files:<tenant>        zset: ids by their creation in microseconds of Unix time
fleet:api:file_expiry:<tenant>  zset: ids, also of unfinished uploads, by their end in Unix seconds
fleet:api:file_sizes:<tenant>   hash: id -> bytes, and `total` -> their sum

All have a TTL.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from api.store.pages import Page, PageQuery, read_page
from primarch_fleet.redis_support import LuaScript

ID_PREFIX = "file-"
#: Bytes of content in one field: a command that Redis executes in about a millisecond.
PART_BYTES = 2**20
#: Most files of a tenant, with those of its batches' answers.
MAX_FILES = 10_000
#: Seconds between two parts of an upload, and between the last one and its end.
UPLOAD_SECONDS = 3_600
#: Seconds for which the lists of a tenant are kept longer than any file in them.
_LIST_SECONDS = 2 * 86_400

Purpose = Literal["batch", "batch_output"]

LUA = Path(__file__).with_name("lua")
_PUT_PART = LuaScript.load(LUA / "prune_files.lua", LUA / "put_part.lua")
_END_UPLOAD = LuaScript.load(LUA / "publish_file.lua", LUA / "end_upload.lua")
_DELETE = LuaScript.load(LUA / "prune_files.lua", LUA / "delete_file.lua")


class Content(Protocol):
    """What a file's content is read from."""

    async def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end of the content."""


class NoRoom(Exception):
    """The tenant has no room for a file: `bytes` or `files` says which limit it has reached."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class UploadLost(Exception):
    """An upload took so long that its content has expired."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a tenant."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, identity: str, fields: dict[bytes, bytes]) -> StoredFile:
        """Return the file that a hash describes."""
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        numbers = (int(texts[name]) for name in ("bytes", "created_at", "expires_at"))
        return cls(identity, texts["filename"], texts["purpose"], *numbers)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(frozen=True)
class Upload:
    """Content that is stored and not yet visible to its tenant."""

    id: str
    tenant: str
    filename: str
    purpose: Purpose
    size_bytes: int

    def fields(self) -> list[str]:
        """Return the fields and values of the file's hash, in turn."""
        values = {
            "tenant": self.tenant,
            "filename": self.filename,
            "purpose": self.purpose,
            "bytes": str(self.size_bytes),
        }
        return [text for pair in values.items() for text in pair]


class FileStore:
    """The files.

    Args:
        client: An asyncio client of Redis, with replies in bytes.
        result_seconds: For how long results are kept, and files at most.
    """

    def __init__(self, client: Any, result_seconds: int) -> None:
        self._redis = client
        self.result_seconds = result_seconds
        #: Seconds for which the lists of a tenant are kept at least.
        self.list_seconds = result_seconds + _LIST_SECONDS

    async def upload(
        self,
        tenant: str,
        filename: str,
        purpose: Purpose,
        content: Content,
        max_stored_bytes: int = 0,
    ) -> Upload:
        """Store content. It is visible after `publish`, and is gone after UPLOAD_SECONDS else.

        Args:
            max_stored_bytes: Of all files of the tenant; 0 for no limit.

        Raises:
            NoRoom: The tenant has no room for the file; nothing of it is left.
        """
        identity, size_bytes, number = f"{ID_PREFIX}{uuid.uuid4().hex}", 0, 0
        keys = [expiry_key(tenant), sizes_key(tenant), parts_key(identity)]
        limits = [max_stored_bytes, MAX_FILES if max_stored_bytes else 0]
        try:
            while (part := await content.read(PART_BYTES)) or not number:
                times = [UPLOAD_SECONDS, self.list_seconds]
                arguments = [identity, number, part, *limits, *times]
                reply = (await _PUT_PART.run(self._redis, keys, arguments)).decode()
                if reply != "stored":
                    raise NoRoom(reply)
                size_bytes, number = size_bytes + len(part), number + 1
        except BaseException:
            await self._delete(identity, tenant, "")
            raise
        return Upload(identity, tenant, filename, purpose, size_bytes)

    async def publish(self, upload: Upload, seconds: int | None = None) -> StoredFile:
        """Make an upload visible to its tenant.

        Args:
            seconds: How long the file is kept; None keeps it as long as results.

        Raises:
            UploadLost: The upload has expired.
        """
        keys = [file_key(upload.id), parts_key(upload.id), *self.list_keys(upload.tenant)]
        times = [seconds or self.result_seconds, self.list_seconds]
        if not await _END_UPLOAD.run(self._redis, keys, [upload.id, *times, *upload.fields()]):
            raise UploadLost
        found = await self.get(upload.tenant, upload.id)
        if found is None:
            raise UploadLost
        return found

    async def get(self, tenant: str, identity: str) -> StoredFile | None:
        """Return a tenant's file; None if there is none, or if it is another tenant's."""
        fields = await self._redis.hgetall(file_key(identity))
        if fields.get(b"tenant") != tenant.encode():
            return None
        return StoredFile.of(identity, fields)

    async def page(self, tenant: str, purpose: str | None, query: PageQuery) -> Page | None:
        """Return some of a tenant's files; None if the query's `after` is none of them."""

        async def read(ids: Sequence[str]) -> list[dict[str, Any] | None]:
            pipe = self._redis.pipeline(transaction=False)
            for identity in ids:
                pipe.hgetall(file_key(identity))
            return [
                _listed(identity, fields, purpose)
                for identity, fields in zip(ids, await pipe.execute(), strict=True)
            ]

        return await read_page(self._redis, files_key(tenant), read, query)

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Return the content in parts.

        Raises:
            UploadLost: In the iteration: the file has been deleted or has expired meanwhile.
        """
        for number in range(max(1, -(-file.size_bytes // PART_BYTES))):
            part = await self._redis.hget(parts_key(file.id), number)
            if part is None:
                raise UploadLost
            yield cast(bytes, part)

    async def delete(self, tenant: str, identity: str) -> Literal["deleted", "unknown", "read"]:
        """Delete a tenant's file, unless a batch reads it."""
        return await self._delete(identity, tenant, tenant)

    async def discard(self, upload: Upload) -> None:
        """Remove an upload that was not published."""
        await self._delete(upload.id, upload.tenant, "")

    def list_keys(self, tenant: str) -> list[str]:
        """Return the keys that publish_file.lua changes beside those of the file."""
        return [files_key(tenant), expiry_key(tenant)]

    async def _delete(
        self, identity: str, tenant: str, owner: str
    ) -> Literal["deleted", "unknown", "read"]:
        keys = [expiry_key(tenant), sizes_key(tenant), file_key(identity), parts_key(identity)]
        keys.append(files_key(tenant))
        reply = await _DELETE.run(self._redis, keys, [identity, owner])
        return cast(Literal["deleted", "unknown", "read"], reply.decode())


def _listed(
    identity: str, fields: dict[bytes, bytes], purpose: str | None
) -> dict[str, Any] | None:
    if not fields:
        return None
    body = StoredFile.of(identity, fields).body()
    return body if purpose in (None, body["purpose"]) else {}


def file_key(identity: str) -> str:
    """Return the key of a file's fields."""
    return f"fleet:api:file:{identity}"


def parts_key(identity: str) -> str:
    """Return the key of a file's content."""
    return f"fleet:api:file_parts:{identity}"


def files_key(tenant: str) -> str:
    """Return the key of a tenant's list of files."""
    return f"fleet:api:files:{tenant}"


def expiry_key(tenant: str) -> str:
    """Return the key of the ends of a tenant's files."""
    return f"fleet:api:file_expiry:{tenant}"


def sizes_key(tenant: str) -> str:
    """Return the key of the sizes of a tenant's files."""
    return f"fleet:api:file_sizes:{tenant}"
