"""Object ids in OpenAI's form."""

import hashlib
import itertools


class Ids:
    """Generates unique ids; the same `nonce` generates the same series.

    Another nonce after a restart keeps a new object from getting the id of an old one.
    """

    def __init__(self, nonce: str) -> None:
        self._key = hashlib.blake2b(nonce.encode(), digest_size=32).digest()
        self._next = itertools.count()

    def new(self, prefix: str) -> str:
        """Return `prefix` and 32 hexadecimal digits."""
        number = next(self._next).to_bytes(8, "big")
        return prefix + hashlib.blake2b(number, key=self._key, digest_size=16).hexdigest()
