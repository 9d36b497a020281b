"""Uploaded files and result files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.onebox.simulator.error import ApiError, JsonObject, invalid, missing
from workers.onebox.simulator.provider import Provider

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_DAYS_30 = 2_592_000
_SHORTEST_LIFE = 3_600
_MOST_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class File:
    """A file; times in Unix seconds. From `expires_at` on it is gone."""

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
        """Keep what a multipart form brought; batch files live 30 days unless it says less."""
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
        life = lifetime(form.get("expires_after"), "expires_after")
        if life is None and purpose == "batch":
            life = _DAYS_30
        now = int(self._provider.clock.now())
        return self._keep(filename, purpose, content, now, life)

    def add_result(self, filename: str, content: bytes, at: float, life: int | None) -> File:
        """Keep a result file written `at` some time, for 30 days unless `life` says otherwise."""
        return self._keep(filename, "batch_output", content, int(at), life or _DAYS_30)

    def find(self, file_id: str) -> File:
        """The file, while it lives; else a 404."""
        file = self._files.get(file_id)
        if file is None or self._expired(file):
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return file

    def delete(self, file_id: str) -> JsonObject:
        """Drop the file; OpenAI's acknowledgement."""
        del self._files[self.find(file_id).id]
        return {"id": file_id, "object": "file", "deleted": True}

    def list(self, query: JsonObject) -> JsonObject:
        """One page: newest first unless `order` is "asc", of one `purpose` if it is given."""
        files = [file for file in self._files.values() if not self._expired(file)]
        if query.get("order", "desc") == "desc":
            files.reverse()
        purpose = query.get("purpose")
        chosen = [file for file in files if purpose in (None, file.purpose)]
        return page(chosen, query, _MOST_LISTED, _MOST_LISTED)

    def _keep(
        self, filename: str, purpose: str, content: bytes, created_at: int, life: int | None
    ) -> File:
        expires_at = None if life is None else created_at + life
        file_id = self._provider.ids.new("file-")
        file = File(file_id, filename, purpose, content, created_at, expires_at)
        self._files[file.id] = file
        return file

    def _expired(self, file: File) -> bool:
        return file.expires_at is not None and file.expires_at <= self._provider.clock.now()


def lifetime(policy: Any, name: str) -> int | None:
    """Seconds of an expiration policy `{anchor, seconds}`: an hour to 30 days; None for none."""
    if policy is None:
        return None
    if not isinstance(policy, dict) or policy.get("anchor") != "created_at":
        raise invalid(f"'{name}.anchor' must be 'created_at'.", f"{name}.anchor")
    try:
        seconds = int(policy.get("seconds", ""))
    except ValueError:
        seconds = 0
    if not _SHORTEST_LIFE <= seconds <= _DAYS_30:
        text = f"'{name}.seconds' must be between {_SHORTEST_LIFE} and {_DAYS_30}."
        raise invalid(text, f"{name}.seconds")
    return seconds


class Listed(Protocol):
    """What a list can hold."""

    @property
    def id(self) -> str:
        """Where the next page starts."""
        ...

    def as_json(self) -> JsonObject:
        """The object."""
        ...


def page(items: Sequence[Listed], query: JsonObject, default: int, most: int) -> JsonObject:
    """The list object with at most `limit` of the `items` that come after the id `after`."""
    try:
        limit = int(query.get("limit", default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= most:
        raise invalid(f"Invalid 'limit': expected a value from 1 to {most}.", "limit")
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
