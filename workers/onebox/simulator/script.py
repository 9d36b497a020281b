"""Scripts: what the simulator answers in place of its own answer, or merged into it."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, model_validator

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.rule import Rule, Seconds


class Script(Rule):
    """A scripted answer to the requests that its rule hits; the others get the normal answer.

    Effect on a call (scope "call"), and on a line of a batch (scope "line") where a line has it:
    - `status`: of the response; from 400 on the request is not charged,
    - `body`: the whole JSON body in place of the normal answer; any text as a string,
    - `merge`: values merged into the body. Objects are merged key by key and lists of objects
      element by element; every other value, null too, replaces the old one,
    - `remove`: dotted paths that are removed afterwards, such as "usage" or "choices.0.logprobs",
    - `headers`: of the response,
    - `delay`: seconds before the first byte; the request is charged before,
    - `billed`: the usage that the invoice has, where the body has another one or none.

    A streamed answer has the chunks of the scripted body, so that one script serves both forms.
    For chunks that no body has:
    - `chunks`: the data of all events, an object or a text each, such as "[DONE]",
    - `chunk_merge`: values merged into each chunk,
    - `pause`: seconds before each chunk,
    - `cut`: the number of chunks after which the connection closes.

    Effect on a line only: `record` is merged into the line of the result file, which has
    `custom_id`, `response` and `error` (Anthropic's: `custom_id` and `result`).

    With `path`, a script answers calls that the simulator has no route for, with `body`.
    """

    status: Annotated[int, Field(ge=200, le=599)] | None = None
    body: JsonObject | str | None = None
    merge: JsonObject = {}
    remove: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    delay: Seconds = 0.0
    billed: JsonObject | None = None
    chunks: tuple[JsonObject | str, ...] | None = None
    chunk_merge: JsonObject = {}
    pause: Seconds = 0.0
    cut: NonNegativeInt | None = None
    record: JsonObject = {}

    @model_validator(mode="after")
    def _check_scope(self) -> "Script":
        if self.scope == "validation":
            raise ValueError("scope validation is for fault rules")
        call_only = self.headers or self.delay or self.chunks is not None or self.pause
        if self.scope == "line" and (call_only or self.cut is not None or self.chunk_merge):
            raise ValueError("headers, delay, pause, cut and chunks need scope call")
        if self.scope == "call" and self.record:
            raise ValueError("record needs scope line")
        return self

    @property
    def is_error(self) -> bool:
        """Whether the response has an error status."""
        return self.status is not None and self.status >= 400

    def applied(self, body: JsonObject) -> Any:
        """The body to send in place of `body`: JSON, or a text."""
        if isinstance(self.body, str):
            return self.body
        whole = body if self.body is None else copy.deepcopy(self.body)
        changed = merged(whole, self.merge)
        for path in self.remove:
            _remove(changed, path.split("."))
        return changed


def merged(value: Any, change: Any) -> Any:
    """A copy of `value` with `change` merged into it, as `Script.merge` says."""
    if isinstance(value, dict) and isinstance(change, dict):
        return {**value, **{name: merged(value.get(name), part) for name, part in change.items()}}
    if _is_objects(value) and _is_objects(change):
        both = [merged(old, new) for old, new in zip(value, change, strict=False)]
        return [*both, *value[len(both) :], *change[len(both) :]]
    return change


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _remove(value: Any, path: Sequence[str]) -> None:
    name, *rest = path
    key: Any = int(name) if isinstance(value, list) else name
    if rest:
        _remove(value[key], rest)
    else:
        value.pop(key, None) if isinstance(value, dict) else value.pop(key)
