"""Whether the lines of a batch can be asked: as at OpenAI, a wrong line fails the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from api.errors import ApiError
from api.media_urls import media_hosts
from primarch_fleet.batch_file.input_file import Line
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.errors import FleetError
from primarch_fleet.requests import Request

#: Most lines of a file: OpenAI's limit.
MAX_LINES = 50_000
#: Most errors that a batch shows.
MAX_ERRORS = 100
#: Most hosts in the URLs of a file's prompts: each name is resolved.
MAX_HOSTS = 1_000


class LineCheck:
    """Checks lines, one after another.

    Args:
        catalogue: The models of the fleet.
        may_use: Whether the key of the batch may use a model.
        check_hosts: Raises ApiError for hosts that prompts may not name.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        may_use: Callable[[str], bool],
        check_hosts: Callable[[set[str]], None],
    ) -> None:
        self._catalogue, self._may_use, self._check_hosts = catalogue, may_use, check_hosts
        self._hosts: set[str] = set()
        #: The lines so far.
        self.lines = 0
        #: What is wrong, as OpenAI's `errors.data`.
        self.errors: list[dict[str, Any]] = []

    def run(self, lines: Iterable[Line]) -> None:
        """Check lines until the end, or until there are MAX_ERRORS."""
        for line in lines:
            self.lines += 1
            if self.lines > MAX_LINES:
                self._add("too_many_tasks", f"the file has more than {MAX_LINES} lines")
                return
            self._check(line)
            if len(self.errors) >= MAX_ERRORS:
                return
        if not self.lines:
            self._add("empty_file", "the file has no line")

    def _check(self, line: Line) -> None:
        if line.error is not None:
            param = ApiError.of(line.error).param
            self._add(line.error_kind, str(line.error), line.number, param)
        elif line.request is not None:
            self._check_model(line.request, line.number)
            self._check_urls(line.request, line.number)

    def _check_model(self, request: Request, number: int) -> None:
        name = request.model
        try:
            self._catalogue.model(name)
        except FleetError as error:
            self._add("model_not_found", str(error), number, "body.model")
            return
        if not self._may_use(name):
            message = f"body.model: this key may not use the model {name!r}"
            self._add("model_not_found", message, number, "body.model")

    def _check_urls(self, request: Request, number: int) -> None:
        try:
            hosts = media_hosts(request.body()) - self._hosts
            if len(self._hosts) + len(hosts) > MAX_HOSTS:
                raise ApiError(400, "invalid_url", f"the URLs have more than {MAX_HOSTS} hosts")
            self._check_hosts(hosts)
            self._hosts |= hosts
        except ApiError as error:
            self._add(error.code, str(error), number, "body")

    def _add(
        self, code: str, message: str, line: int | None = None, param: str | None = None
    ) -> None:
        self.errors.append({"code": code, "message": message, "line": line, "param": param})
