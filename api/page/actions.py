"""What forms of the page do: each is checked, done, logged, and followed by a page that says so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api.call import Call
from api.errors import ApiError
from api.page.signing import read_signer
from api.page.view import FORM, MESSAGE, SIGNATURE, view

logger = logging.getLogger(__name__)

#: Of a form, and most fields in it: those of all rows that a page shows.
_MAX_FORM_BYTES, _MAX_FIELDS = 2**17, 1_000
#: Characters of a message in an address.
_MAX_MESSAGE = 500


@dataclass(frozen=True)
class Form:
    """What a browser has sent: texts by the name of the field."""

    fields: dict[str, list[str]]

    def one(self, name: str) -> str:
        """Return the text of a field; "" if it is missing."""
        return _line(self.fields.get(name, [""])[0])

    def all(self, name: str) -> list[str]:
        """Return the different texts of a field that are not empty."""
        texts = map(_line, self.fields.get(name, ()))
        return list(dict.fromkeys(text for text in texts if text))


@dataclass(frozen=True)
class Done:
    """What an action has done."""

    #: A sentence for the operator.
    message: str
    #: The page that follows.
    path: str
    #: Parameters of its address.
    query: dict[str, str] | None = None


Action = Callable[[Call, Form], Awaitable[Done]]


def action(act: Action) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler of Starlette for a form of an operator.

    Args:
        act: Called with an accepted form.
    """

    async def handle(call: Call) -> Response:
        form = _parsed(await call.body(_MAX_FORM_BYTES))
        signer = await read_signer(call.services.redis, call.caller.name)
        if not signer.has_signed(form.one("token"), FORM):
            raise ApiError(403, "invalid_form", "the form is too old: load its page again")
        done = await act(call, form)
        logger.warning("%s: %s", call.caller.name, done.message, extra={"action": "page_action"})
        text = done.message[:_MAX_MESSAGE]
        signed = {MESSAGE: text, SIGNATURE: signer.sign(MESSAGE, text)}
        # See Other: to load the page that follows again sends no form.
        return RedirectResponse(f"{done.path}?{urlencode((done.query or {}) | signed)}", 303)

    return view(handle, "operator")


def _line(text: str) -> str:
    """A text without line ends and other control characters: it may get into the log."""
    return "".join(character for character in text if character.isprintable()).strip()


def _parsed(body: bytes) -> Form:
    try:
        return Form(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise ApiError(400, "invalid_form", "the form cannot be read") from None
