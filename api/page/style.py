"""The page's style sheet, at an address that changes with it, so that browsers keep it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_TEXT = (Path(__file__).parent / "static" / "page.css").read_bytes()
URL = f"/page.css?{hashlib.sha256(_TEXT).hexdigest()[:12]}"
_HEADERS = {
    "cache-control": "public, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
}


async def show(_: Request) -> Response:
    """Return the style sheet; it needs no key."""
    return Response(_TEXT, media_type="text/css", headers=_HEADERS)
