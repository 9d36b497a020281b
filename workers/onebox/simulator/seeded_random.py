"""Random numbers that depend on their seed but not on the order of calls."""

import hashlib


def seeded_random(*parts: object) -> float:
    """Return a number in [0, 1), the same for the same `parts`."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=7)
    # 53 bits are exact in a float, so the result is never rounded up to 1.0.
    return (int.from_bytes(digest.digest(), "big") >> 3) / 2**53
