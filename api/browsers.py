"""What a browser sends that its user did not mean: refused before any endpoint.

A web page may make a browser call any address, also one of this machine, and the browser adds the
key of a login by HTTP Basic by itself. Two checks stop that:

- An API without keys is called by a name of this machine only. A foreign name that resolves to it
  is DNS rebinding.
- A call that changes something comes from a page of the API itself, as far as the browser says. A
  call with a bearer key was meant: no browser adds that by itself.

https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import NO_RETRY, ApiError
from api.services import Services

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
#: Values of Sec-Fetch-Site: from a page of the same origin, and typed by the user.
_OWN_SITES = ("same-origin", "none")


class BrowserCheck:
    """Refuses calls that a browser makes for another site."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a call, or answer it with status 403 or 421."""
        if scope["type"] == "http" and (error := _refusal(scope)):
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _refusal(scope: Scope) -> ApiError | None:
    services: Services = scope["app"].state.services
    headers = Headers(scope=scope)
    if not services.config.keys and not is_loopback(_host_of(headers.get("host", ""))):
        message = "without keys, this API is called by the address 127.0.0.1, ::1 or localhost"
        return ApiError(421, "misdirected_request", message, headers=NO_RETRY)
    if scope["method"] not in _SAFE_METHODS and is_foreign(headers):
        message = "the call comes from a page of another site"
        return ApiError(403, "cross_site_request", message, headers=NO_RETRY)
    return None


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Return whether a browser says that another site makes the call, without a bearer key.

    Args:
        headers: Of the call, with names in lower case.
    """
    if headers.get("authorization", "").lower().startswith("bearer "):
        return False
    if site := headers.get("sec-fetch-site"):
        return site not in _OWN_SITES
    # An old browser, or an address without TLS. The scheme may be that of a balancer.
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host", "")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its address or as `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets; "" if it is malformed."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
