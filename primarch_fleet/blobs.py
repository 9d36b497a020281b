"""Bodies that are too large for Redis: where one lies, and how it is read there."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from primarch_fleet.errors import BodyUnavailable


class BlobRef(BaseModel):
    """Where a body lies, and what it is. There are no credentials in it: fsspec has its own."""

    model_config = ConfigDict(frozen=True)

    #: For fsspec: `s3://bucket/...`, `file:///...`.
    url: str
    #: Bytes of the body as JSON, and their SHA-256 in hex digits.
    size: int
    sha256: str

    @classmethod
    def for_data(cls, url: str, data: bytes) -> Self:
        """The reference to what lies, or is to lie, at an address."""
        return cls(url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_blob(reference: BlobRef) -> dict[str, Any]:
    """The body that was put there. Blocks.

    Raises FileNotFoundError when it is gone or is not what was put there, ImportError when a
    package is missing, or what else fsspec raises when the place does not answer.
    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only who meets a reference needs it

    files, path = url_to_fs(reference.url)
    data = files.cat_file(path)
    if BlobRef.for_data(reference.url, data) != reference:
        raise FileNotFoundError("what lies there is not what was put there")
    body: dict[str, Any] = json.loads(data)
    return body


def fetch_blob(reference: BlobRef) -> dict[str, Any]:
    """`read` for producers. Blocks. Raises BodyUnavailable, which says what to do."""
    try:
        return read_blob(reference)
    except ImportError as error:
        what = f"pip install fsspec, and the package for its protocol ({error})"
    except Exception as error:  # each kind of place has errors of its own
        what = f"{type(error).__name__}: {error}"
    raise BodyUnavailable(f"{reference.size} bytes at {reference.url}: {what}")
