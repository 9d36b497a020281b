"""The signature of an event.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from config.webhook_secrets import KEY_PREFIX


def signed_headers(
    secrets: Sequence[str], webhook_id: str, body: bytes, at: float
) -> dict[str, str]:
    """Return the headers of an event, with a signature by each secret.

    Args:
        secrets: Each is KEY_PREFIX and base64.
        webhook_id: The id of the event.
        body: Of the event.
        at: Unix seconds of this attempt, by the clock that receivers compare with theirs.
    """
    timestamp = str(int(at))
    text = f"{webhook_id}.{timestamp}.".encode() + body
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{_signature(one, text)}" for one in secrets),
    }


def _signature(secret: str, text: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(KEY_PREFIX))
    return base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
