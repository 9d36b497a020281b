"""A page for a person: who may see it, what its headers forbid, and errors as pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from redis.exceptions import ResponseError
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from api.call import Call, Handler, endpoint
from api.errors import ApiError
from api.page.signing import Signer, read_signer
from api.page.templates import TEMPLATES
from config.api import Role
from primarch_fleet.errors import FleetError
from primarch_fleet.redis_support import is_not_permitted
from primarch_fleet.results import reachable

#: Seconds after which the browser loads a page again that nothing is chosen on.
REFRESH_SECONDS = 15
#: Parameters of an address that are the page's own.
MESSAGE, SIGNATURE, REFRESH = "message", "signature", "refresh"
#: What a signature is for.
FORM = "form"

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Forms of the page have their origin; with `no-referrer` it would be "null".
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_NO_PERMISSION = (
    "the Redis user of this process may not read the fleet: the page needs the user `operator` of "
    "config/acl.py"
)
#: Makes a browser ask for a login: any name, and the key as the password.
_LOGIN = {"www-authenticate": 'Basic realm="fleet"'}


def view(handler: Handler, role: Role = "reader") -> Callable[[Request], Awaitable[Response]]:
    """Return a handler of Starlette for a page, or for what a page's form does.

    Args:
        handler: Called with the call of an accepted caller.
        role: What the caller must have.
    """

    async def handle(call: Call) -> Response:
        try:
            with reachable():
                return await handler(call)
        except FleetError as error:
            cause = error.__cause__
            if isinstance(cause, ResponseError) and is_not_permitted(cause):
                raise ApiError(503, "no_permission", _NO_PERMISSION) from None
            raise

    answer = endpoint(role, handle, _error_page)

    async def with_headers(request: Request) -> Response:
        response = await answer(request)
        response.headers.update(_HEADERS)
        return response

    return with_headers


async def render(call: Call, name: str, *, refreshes: bool = False, **values: Any) -> Response:
    """Return a page.

    Args:
        name: Of the template.
        refreshes: Whether the browser loads it again every REFRESH_SECONDS, unless its user has
            stopped that.
        values: For the template.
    """
    signer = await read_signer(call.services.redis, call.caller.name)
    is_stopped = call.request.query_params.get(REFRESH) == "off"
    page = TEMPLATES.get_template(name).render(
        path=call.request.url.path,
        key_name=call.caller.name,
        key_role=call.caller.role,
        may_act=call.caller.may("operator"),
        token=signer.sign(FORM),
        message=_message(call.request, signer),
        refresh_seconds=REFRESH_SECONDS if refreshes and not is_stopped else None,
        refresh_url=_address(call.request),
        toggle_url=_address(call.request, **({} if is_stopped else {REFRESH: "off"})),
        refreshes=refreshes,
        **values,
    )
    return HTMLResponse(page)


def _message(request: Request, signer: Signer) -> str:
    """What the last action has said; "" if no action has said this."""
    text = request.query_params.get(MESSAGE, "")
    return text if signer.has_signed(request.query_params.get(SIGNATURE, ""), MESSAGE, text) else ""


def _address(request: Request, **changed: str) -> str:
    """The page's address without the message of the last action."""
    own = (MESSAGE, SIGNATURE, *([REFRESH] if not changed else ()))
    kept = [(name, text) for name, text in request.query_params.multi_items() if name not in own]
    query = urlencode([*kept, *changed.items()])
    return f"{request.url.path}?{query}" if query else request.url.path


def _error_page(error: ApiError) -> Response:
    status = HTTPStatus(error.status)
    page = TEMPLATES.get_template("error.html").render(
        title=status.phrase, text=str(error), is_login=status is HTTPStatus.UNAUTHORIZED
    )
    headers = error.headers | (_LOGIN if status is HTTPStatus.UNAUTHORIZED else {})
    return HTMLResponse(page, error.status, headers=headers)
