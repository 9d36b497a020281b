"""The entries of the hash of leases: a message and the list it came from, and its next delivery."""

import json
import re
from typing import Any

from celery.exceptions import WorkerLostError

from workers.runtime.dead_letters import Undeliverable

#: Property of a message: its deliveries without an acknowledgement.
DELIVERIES = "fleet_deliveries"
#: An entry of the hash of leases. The message is not decoded: it may be any text.
_ENTRY = re.compile(r'\[(.*), ?"", ?("(?:[^"\\]|\\.)*")\]', re.DOTALL)


def parts(entry: bytes) -> tuple[str, str]:
    """Return the text of an entry's message, and the list that it came from; "" if unknown."""
    text = entry.decode(errors="replace")
    found = _ENTRY.fullmatch(text)
    return (found[1], json.loads(found[2])) if found else (text, "")


def next_delivery(
    entry: bytes, counts: bool, max_deliveries: int
) -> tuple[str, str, Undeliverable | None]:
    """Return a message's queue, its text for the next delivery, and why there must be none."""
    text, queue = parts(entry)
    try:
        message = json.loads(text)
        deliveries = _count_delivery(message["properties"], counts)
        next_text = json.dumps(message)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        return queue, text, Undeliverable("undecodable", exc)
    if deliveries < max_deliveries:
        return queue, next_text, None
    error = WorkerLostError(f"Delivered {deliveries} times and never acknowledged")
    return queue, text, Undeliverable("max_deliveries", error)


def _count_delivery(properties: dict[str, Any], counts: bool) -> int:
    """Note in a message's properties that it was delivered; return how often, as far as counted.

    Raises:
        TypeError: The properties are malformed.
    """
    deliveries = properties.get(DELIVERIES, 0)
    # Any other value, such as a negative one, would let a message go round without an end.
    if type(deliveries) is not int or deliveries < 0:
        raise TypeError(f"{DELIVERIES} must be a number of deliveries")
    properties[DELIVERIES] = deliveries + counts
    delivery_info = properties.get("delivery_info") or {}
    properties["delivery_info"] = {**delivery_info, "redelivered": True}
    return deliveries + counts
