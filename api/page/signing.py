"""Signatures that only this fleet's page makes: of forms, and of the messages that it shows.

A form's token is bound to its caller. No other site knows it, so it cannot send the form in the
caller's name, although the browser would add the key. A message is part of an address, so its
signature keeps others from writing sentences on the page by a link.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

#: Redis key of a string: the secret, the same for all processes of the API.
SECRET_KEY = "fleet:api:page_secret"  # noqa: S105 - a key's name
#: After the last look at a page. A form that is older is refused.
SECRET_TTL_SECONDS = 86_400
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Signer:
    """Signs texts for one caller."""

    caller: str
    _secret: bytes = field(repr=False)

    def sign(self, purpose: str, text: str = "") -> str:
        """Return the signature of a text for a purpose."""
        message = json.dumps([purpose, self.caller, text]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def has_signed(self, signature: str, purpose: str, text: str = "") -> bool:
        """Return whether this caller's signer has signed a text."""
        return hmac.compare_digest(signature.encode(), self.sign(purpose, text).encode())


async def read_signer(client: Any, caller: str) -> Signer:
    """Return the signer of a caller, with the deployment's secret, which the first call makes.

    Args:
        client: Of redis-py's asyncio.
        caller: The name of the caller's key.
    """
    pipe = client.pipeline(transaction=False)
    pipe.set(SECRET_KEY, secrets.token_hex(_SECRET_BYTES), nx=True, ex=SECRET_TTL_SECONDS)
    pipe.getex(SECRET_KEY, ex=SECRET_TTL_SECONDS)
    _, secret = await pipe.execute(raise_on_error=False)
    if not isinstance(secret, bytes):
        # Redis is out of memory: the page can be read, and its forms are refused.
        secret = secrets.token_bytes(_SECRET_BYTES)
    return Signer(caller, secret)
