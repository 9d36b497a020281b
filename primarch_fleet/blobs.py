"""Bodies that are too large for Redis: the reference to a stored body, and how to read it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from primarch_fleet.errors import BodyUnavailable


class BlobRef(BaseModel):
    """A reference to a stored body, without credentials: fsspec is configured with its own."""

    model_config = ConfigDict(frozen=True)

    #: A URL for fsspec: `s3://bucket/...`, `file:///...`.
    url: str
    #: Size of the body as JSON in bytes, and its SHA-256 in hex digits.
    size: int
    sha256: str

    @classmethod
    def for_data(cls, url: str, data: bytes) -> Self:
        """Create the reference to data that is, or will be, stored at a URL."""
        return cls(url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_blob(reference: BlobRef) -> dict[str, Any]:
    """Read a stored body. Blocks.

    Raises:
        FileNotFoundError: The body is gone, or its checksum is wrong.
        ImportError: fsspec or its package for the protocol is not installed.
        Exception: Other errors of fsspec, if the storage does not answer.
    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - optional dependency

    files, path = url_to_fs(reference.url)
    data = files.cat_file(path)
    if BlobRef.for_data(reference.url, data) != reference:
        raise FileNotFoundError("the stored data does not match its checksum")
    body: dict[str, Any] = json.loads(data)
    return body


def fetch_blob(reference: BlobRef) -> dict[str, Any]:
    """Call `read_blob` for a producer. Blocks.

    Raises:
        BodyUnavailable: The body could not be read. The message says why and what to install.
    """
    try:
        return read_blob(reference)
    except ImportError as error:
        problem = f"pip install fsspec, and the package for its protocol ({error})"
    except Exception as error:  # each file system has errors of its own
        problem = f"{type(error).__name__}: {error}"
    raise BodyUnavailable(f"{reference.size} bytes at {reference.url}: {problem}")
