"""Which tenant a response belongs to: a record for each, as long as its answer is kept.

fleet:api:response:<id>   JSON of a ResponseRecord, a string with a TTL
"""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

ID_PREFIX = "resp_"
#: Seconds for which a request may wait for its answer; the answer is kept for the result's time
#: after that. A batch of the slowest provider takes two days.
MAX_OPEN_SECONDS = 7 * 86_400


class ResponseRecord(BaseModel):
    """A response that can be asked for again. It has no part of the prompt."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    task_id: str
    model: str
    created_at: int
    is_background: bool = False
    is_streamed: bool = False
    metadata: dict[str, JsonValue] = {}
    previous_response_id: str | None = None

    @property
    def id(self) -> str:
        """The response's id, which is made of the task's."""
        return response_id(self.task_id)


def response_id(task_id: str) -> str:
    """Return the id of the response that a task makes."""
    return ID_PREFIX + uuid.UUID(task_id).hex


def task_id_of(response_id: str) -> str:
    """Return the id of the task that makes a response."""
    return str(uuid.UUID(response_id.removeprefix(ID_PREFIX)))


class ResponseStore:
    """The records.

    Args:
        client: An asyncio client of Redis.
        result_seconds: How long results are kept.
    """

    def __init__(self, client: Any, result_seconds: int) -> None:
        self._redis = client
        self._seconds = result_seconds + MAX_OPEN_SECONDS

    async def put(self, record: ResponseRecord) -> None:
        """Write a record."""
        await self._redis.set(record_key(record.id), record.model_dump_json(), ex=self._seconds)

    async def get(self, tenant: str, identity: str) -> ResponseRecord | None:
        """Return a tenant's record; None if there is none, or if it is another tenant's."""
        text = await self._redis.get(record_key(identity))
        record = ResponseRecord.model_validate_json(text) if text else None
        return record if record is not None and record.tenant == tenant else None

    async def remove(self, record: ResponseRecord) -> None:
        """Remove a record: the response cannot be asked for any more."""
        await self._redis.delete(record_key(record.id))


def record_key(identity: str) -> str:
    """Return the key of the record of a response."""
    return f"fleet:api:response:{identity}"
