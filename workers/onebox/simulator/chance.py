"""Seeded chance that does not depend on the order of calls."""

import hashlib


def chance(*parts: object) -> float:
    """A number in [0, 1), the same for the same `parts`."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=7)
    # 53 bits: what a float holds exactly, so that 1.0 is never reached.
    return (int.from_bytes(digest.digest(), "big") >> 3) / 2**53
