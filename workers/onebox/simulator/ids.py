"""Identifiers that OpenAI would give."""

import hashlib
import itertools


class Ids:
    """Gives each id once; the same `nonce` gives the same series.

    The nonce keeps a restarted simulator from giving a new object the id of an old one.
    """

    def __init__(self, nonce: str) -> None:
        self._key = hashlib.blake2b(nonce.encode(), digest_size=32).digest()
        self._next = itertools.count()

    def new(self, prefix: str) -> str:
        """`prefix` and 32 hexadecimal digits."""
        number = next(self._next).to_bytes(8, "big")
        return prefix + hashlib.blake2b(number, key=self._key, digest_size=16).hexdigest()
