"""Uploaded files and result files, and the pages of lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, missing
from workers.onebox.simulator.provider import Provider

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_MAX_SECONDS = 2_592_000  # 30 days
_MIN_SECONDS = 3_600
_MAX_PAGE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class File:
    """A file; times in Unix seconds. It does not exist any more from `expires_at` on."""

    id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int
    expires_at: int | None

    def as_json(self) -> JsonObject:
        """OpenAI's `file` object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """All files, oldest first."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._files: dict[str, File] = {}

    def upload(self, form: JsonObject) -> File:
        """Store the file of a multipart form; by default a batch file expires after 30 days."""
        if "file" not in form:
            raise missing("file")
        filename, content = form["file"]
        purpose = form.get("purpose")
        if purpose is None:
            raise missing("purpose")
        if purpose not in _PURPOSES:
            text = f"'{purpose}' is not one of {list(_PURPOSES)} - 'purpose'"
            raise invalid(text, "purpose")
        if purpose == "batch" and not filename.endswith(".jsonl"):
            raise invalid("Invalid file format for Batch API. Must be .jsonl", "file")
        seconds = lifetime(form.get("expires_after"), "expires_after")
        if seconds is None and purpose == "batch":
            seconds = _MAX_SECONDS
        now = int(self._provider.clock.now())
        return self._store(filename, purpose, content, now, seconds)

    def add_result(
        self, filename: str, content: bytes, created_at: float, lifetime_seconds: int | None
    ) -> File:
        """Store a result file; it expires after `lifetime_seconds`, 30 days by default."""
        seconds = lifetime_seconds or _MAX_SECONDS
        return self._store(filename, "batch_output", content, int(created_at), seconds)

    def find(self, file_id: str) -> File:
        """Return the file; raise a 404 if it does not exist or has expired."""
        file = self._files.get(file_id)
        if file is None or self._expired(file):
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return file

    def delete(self, file_id: str) -> JsonObject:
        """Delete the file and return OpenAI's acknowledgement."""
        del self._files[self.find(file_id).id]
        return {"id": file_id, "object": "file", "deleted": True}

    def list(self, query: JsonObject) -> JsonObject:
        """One page, newest first unless `order` is "asc", filtered by `purpose` if given."""
        files = [file for file in self._files.values() if not self._expired(file)]
        if query.get("order", "desc") == "desc":
            files.reverse()
        purpose = query.get("purpose")
        matching = [file for file in files if purpose in (None, file.purpose)]
        return page(matching, query, _MAX_PAGE_SIZE, _MAX_PAGE_SIZE)

    def _store(
        self, filename: str, purpose: str, content: bytes, created_at: int, seconds: int | None
    ) -> File:
        expires_at = None if seconds is None else created_at + seconds
        file_id = self._provider.ids.new("file-")
        file = File(file_id, filename, purpose, content, created_at, expires_at)
        self._files[file.id] = file
        return file

    def _expired(self, file: File) -> bool:
        return file.expires_at is not None and file.expires_at <= self._provider.clock.now()


def lifetime(policy: Any, name: str) -> int | None:
    """The seconds of a policy `{anchor, seconds}`, from an hour to 30 days; None without one."""
    if policy is None:
        return None
    if not isinstance(policy, dict) or policy.get("anchor") != "created_at":
        raise invalid(f"'{name}.anchor' must be 'created_at'.", f"{name}.anchor")
    try:
        seconds = int(policy.get("seconds", ""))
    except ValueError:
        seconds = 0
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        text = f"'{name}.seconds' must be between {_MIN_SECONDS} and {_MAX_SECONDS}."
        raise invalid(text, f"{name}.seconds")
    return seconds


class Listed(Protocol):
    """An object that can be in a list."""

    @property
    def id(self) -> str:
        """The id, at which a page can start."""
        ...

    def as_json(self) -> JsonObject:
        """The object as JSON."""
        ...


def page(items: Sequence[Listed], query: JsonObject, default: int, max_limit: int) -> JsonObject:
    """A list object with at most `limit` of the `items` after the one with the id `after`."""
    try:
        limit = int(query.get("limit", default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= max_limit:
        raise invalid(f"Invalid 'limit': expected a value from 1 to {max_limit}.", "limit")
    start = 0
    if "after" in query:
        ids = [item.id for item in items]
        if query["after"] not in ids:
            raise invalid(f"Invalid 'after': no object with id '{query['after']}'.", "after")
        start = ids.index(query["after"]) + 1
    data = [item.as_json() for item in items[start : start + limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > start + limit,
    }
