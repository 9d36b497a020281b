"""Bounds what a compressed message may become, so that no small message fills a worker's memory.

A plain Celery producer may compress its messages (`task_compression`). kombu decompresses all of
whatever it gets: some kilobytes of bzip2 can be gigabytes. Importing this module replaces kombu's
decoders of the formats that Python has; others need packages that no worker has installed.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from kombu import compression

#: Bytes of a decompressed body at most.
MAX_BYTES = 64 * 2**20


def bounded(make: Callable[[], Any], max_bytes: int = MAX_BYTES) -> Callable[[bytes], bytes]:
    """Return a decoder of at most so many bytes.

    Args:
        make: Makes a decompressor whose `decompress` takes the most bytes to return.

    Returns:
        A function that raises ValueError if a text is larger or incomplete.
    """

    def decompress(data: bytes) -> bytes:
        decompressor = make()
        text: bytes = decompressor.decompress(data, max_bytes)
        if not decompressor.eof:
            raise ValueError(f"compressed: larger than {max_bytes} bytes, or incomplete")
        return text

    return decompress


_FORMATS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
for _content_type, _make in _FORMATS.items():
    _encoder: Any = compression.get_encoder(_content_type)
    compression.register(_encoder[0], bounded(_make), _content_type)
