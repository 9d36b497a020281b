"""Random ids for many messages at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

#: Ids of one read, which is a system call.
_IDS_PER_READ = 16
_ID_BYTES = 16


def random_uuids() -> Iterator[str]:
    """Yield random UUIDs of version 4, without end.

    Make an iterator for each submit: a process and its fork would read the same ids from an
    iterator that is kept.
    """
    while True:
        read = os.urandom(_IDS_PER_READ * _ID_BYTES)
        for start in range(0, len(read), _ID_BYTES):
            yield str(uuid.UUID(bytes=read[start : start + _ID_BYTES], version=4))
