"""Dead letters for operators: list, show, replay and drop them.

A dead letter's id is a hash of its text; that of its task names it, too. Lists have no message: it
holds a prompt.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from celery.backends.base import KeyValueStoreBackend
from redis.asyncio import Redis
from rich.table import Table
from rich.text import Text

from primarch_fleet.contract import LANES
from primarch_fleet.errors import FleetError
from scheduler.admin.request_labels import RequestLabels, labels_of
from scheduler.admin.tables import plain_table
from workers.runtime.dead_letters import LETTER_KEYS, task_request
from workers.runtime.leases.lease_entry import DELIVERIES
from workers.runtime.scripts import REPLAY

#: Dead letters that one command reads from Redis.
PAGE = 50
#: Dead letters that a list shows by default.
LISTED = 20
ID_LENGTH = 12
#: The kind of a message whose task no worker of its queue knew: it may be replayed in vain.
UNKNOWN_TASK = "unknown_task"


class NoSuchLetter(FleetError):
    """No dead letter has this id: it was replayed, dropped, or never existed."""


class NotReplayable(FleetError):
    """The message cannot be put back in a queue."""


@dataclass(frozen=True)
class Letter:
    """A dead letter without its message."""

    id: str
    #: ISO 8601, in UTC, to the second.
    at: str
    kind: str
    queue: str
    error: str
    task_id: str
    task: str
    bytes: int
    #: Of the request, as far as the message can be read.
    tenant: str
    model: str
    #: Of the queue; that of the task for another queue.
    lane: str


@dataclass(frozen=True)
class LetterFilter:
    """Which dead letters are meant: those that have each value that is not None."""

    kind: str | None = None
    queue: str | None = None
    task: str | None = None
    tenant: str | None = None
    lane: str | None = None
    model: str | None = None

    def matches(self, letter: Letter) -> bool:
        """Return whether a dead letter has these values."""
        return all(value in (None, getattr(letter, name)) for name, value in vars(self).items())


@dataclass(frozen=True)
class _Entry:
    """A dead letter as Redis has it."""

    text: str
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:ID_LENGTH]

    def letter(self) -> Letter:
        request = task_request(str(self.fields["message"]))
        labels = _UNREADABLE if request is None else labels_of(request)
        queue = str(self.fields["queue"])
        lane = queue.partition(".")[0]
        at = datetime.fromtimestamp(float(self.fields["at"]), UTC)
        return Letter(
            id=self.id,
            at=at.isoformat(timespec="seconds"),
            kind=str(self.fields["kind"]),
            queue=queue,
            error=str(self.fields["error"]),
            task_id="" if request is None else str(request.id),
            task="" if request is None else str(getattr(request, "task", "")),
            bytes=len(self.text),
            tenant=labels.tenant,
            model=labels.model,
            lane=lane if lane in LANES else labels.lane,
        )

    def is_meant(self, letter_id: str) -> bool:
        """Whether an id is the dead letter's, or that of its task."""
        return self.id == letter_id or self.letter().task_id == letter_id


_UNREADABLE = RequestLabels("", "", "", "")
EVERY_LETTER = LetterFilter()


class DeadLetters:
    """The dead letters of a fleet.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # redis-py types each command for its sync and async clients

    async def list(
        self, limit: int | None = LISTED, where: LetterFilter = EVERY_LETTER
    ) -> list[Letter]:
        """Return the newest dead letters, without their messages.

        Args:
            limit: How many at most; None for all.
            where: Which dead letters.
        """
        letters: list[Letter] = []
        async for entry in self._entries():
            if len(letters) == limit:
                break
            letter = entry.letter()
            if where.matches(letter):
                letters.append(letter)
        return letters

    async def show(self, letter_id: str) -> dict[str, Any]:
        """Return a dead letter with its message, prompt included; the body decoded where it can be.

        Raises:
            NoSuchLetter: There is no such dead letter.
        """
        entry = await self._find(letter_id)
        return asdict(entry.letter()) | {"message": _readable(str(entry.fields["message"]))}

    async def replay(self, letter_id: str) -> Letter:
        """Put a dead letter's message back in its queue, as a new one, and remove the dead letter.

        Workers sort the message by its priority. The stored failure of its task is deleted. Of
        several calls at once, one succeeds.

        Raises:
            NoSuchLetter: There is no such dead letter, or another call was first.
            NotReplayable: No worker could read the message, or it came from no queue. It stays a
                dead letter.
        """
        entry = await self._find(letter_id)
        letter, message = entry.letter(), _renewed(entry)
        await self._remove(entry, letter, message)
        return letter

    async def drop(self, letter_id: str) -> Letter:
        """Remove a dead letter. Raises NoSuchLetter."""
        entry = await self._find(letter_id)
        letter = entry.letter()
        await self._remove(entry, letter, "")
        return letter

    async def _remove(self, entry: _Entry, letter: Letter, message: str) -> None:
        result = KeyValueStoreBackend.task_keyprefix + letter.task_id
        keys = [*LETTER_KEYS, letter.queue, result]
        if not await REPLAY.run(self._redis, keys, [entry.text, message]):
            raise NoSuchLetter(f"{letter.id}: already replayed or dropped")

    async def _find(self, letter_id: str) -> _Entry:
        async for entry in self._entries():
            if entry.is_meant(letter_id):
                return entry
        raise NoSuchLetter(
            f"{letter_id}: no such dead letter. A request that failed otherwise is not kept, "
            "because its prompt is not: its producer submits it again"
        )

    async def _entries(self) -> AsyncIterator[_Entry]:
        """Yield the dead letters, newest first."""
        start = 0
        while texts := await self._redis.lrange(LETTER_KEYS[0], start, start + PAGE - 1):
            for text in texts:
                yield _Entry(text, json.loads(text))
            start += PAGE


def _renewed(entry: _Entry) -> str:
    """The message for its queue, as if it had not been delivered. Raises NotReplayable."""
    if not entry.fields["queue"] or entry.fields["kind"] == "broadcast":
        raise NotReplayable(f"{entry.id}: it came from no queue; drop it")
    try:
        message = json.loads(entry.fields["message"])
        message["properties"].pop(DELIVERIES, None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise NotReplayable(
            f"{entry.id}: the message cannot be read, so no worker can process it; drop it"
        ) from None
    return json.dumps(message)


def _readable(text: str) -> Any:
    """A message as an object with its body decoded, as far as that is possible."""
    try:
        message = json.loads(text)
        body = base64.b64decode(message["body"], validate=True).decode()
        return message | {"body": json.loads(body)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return text


def as_json(letters: list[Letter]) -> dict[str, Any]:
    """The dead letters as JSON."""
    return {"dead_letters": [asdict(letter) for letter in letters]}


def as_table(letters: list[Letter]) -> Table:
    """The dead letters as a table for a terminal."""
    title = f"the newest dead letters: {len(letters)}"
    table = plain_table(title)
    for name in ("id", "at", "kind", "queue", "task", "task id", "reason"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        texts = (letter.at, letter.kind, letter.queue, letter.task, letter.task_id, letter.error)
        table.add_row(letter.id, *map(Text, texts))
    return table
