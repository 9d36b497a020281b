"""Whole messages by Hypothesis, around the names that a worker looks for."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.encoding import encoded, to_json
from tests.fuzz.values import ANY, NAMES, ODD

_ODD = st.sampled_from(ODD)
_FIELDS = st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4)
_BODY = st.one_of(
    st.tuples(ANY, ANY, ANY),
    st.tuples(st.lists(ANY, max_size=2), _FIELDS, _FIELDS),
    _FIELDS,
    ANY,
)


@st.composite
def whole_messages(draw: st.DrawFn, tasks: tuple[str, ...]) -> bytes:
    """A message for some of these tasks, or for none."""
    headers: Any = {"task": draw(st.sampled_from(tasks) | _ODD), **draw(_FIELDS)}
    properties: Any = {"delivery_info": {}, "body_encoding": "base64", **draw(_FIELDS)}
    message: dict[str, Any] = {
        "body": draw(st.builds(encoded, _BODY) | ANY),
        "content-encoding": draw(st.sampled_from(["utf-8", "binary"]) | _ODD),
        "content-type": draw(st.sampled_from(["application/json"]) | _ODD),
        "headers": draw(st.just(headers) | _ODD),
        "properties": draw(st.just(properties) | _ODD),
    }
    for name in draw(st.lists(st.sampled_from([*message]), max_size=1)):
        del message[name]
    return to_json(message).encode()
