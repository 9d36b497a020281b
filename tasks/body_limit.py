"""The size that a request may have, for producers whose own process does not check it."""

from __future__ import annotations

from typing import Any, cast

from primarch_fleet import protocol
from tasks import services


def check_size(body: object) -> None:
    """Check the wire form of a request, before anything is made of it.

    Raises:
        RequestTooLarge: It is larger than `max_request_bytes` of fleet.yaml.
        InvalidRequest: It contains a lone surrogate.
    """
    catalogue = services.current().catalogue
    if catalogue is None:
        return
    try:
        text = protocol.wire_json(cast("dict[str, Any]", body))
    except ValueError:  # NaN: the check of the fields says where
        return
    # ASCII: no text is shorter than its bytes in UTF-8.
    if len(text) <= catalogue.max_request_bytes:
        return
    protocol.check_size(text, catalogue.max_request_bytes)
