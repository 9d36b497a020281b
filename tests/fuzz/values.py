"""Values that no message should have."""

from __future__ import annotations

import copy
import random
from typing import Any

from hypothesis import strategies as st

#: Nested as deeply as a JSON decoder refuses, and as it still reads.
DEEP, NESTED = "[" * 5000 + "]" * 5000, "[" * 400 + "]" * 400


class Raw(str):
    """JSON text to put into a message as it is."""


#: A link of no task; a date that no clock can show; what `task.request` is made of.
ODD: tuple[Any, ...] = (
    *(None, True, 0, 5, -1, 2**63, 10**400, 0.5, -1e308, 1e308),
    *(float("nan"), float("inf"), "", "x", "\ud800", "\x00", "5", "x" * 3000),
    *([], {}, [5], [[]], [{}], ["x"], {"a": 5}, {"task": 5}, {"task": "x", "options": 5}),
    *({"task": "celery.chord", "args": 5}, {"task": "celery.group", "kwargs": {"tasks": 5}}),
    {"task": "celery.chord", "kwargs": {"header": [5], "body": 5}, "subtask_type": "chord"},
    {"task": "unknown.task", "args": [], "kwargs": {}, "options": {}, "subtask_type": None},
    *("2020-01-01T00:00:00", "2020-01-01", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00"),
    *(Raw(DEEP), Raw(NESTED), Raw("1e400"), Raw("-" + "9" * 5000)),
)
#: Names of headers and properties that Celery, kombu or the fleet read.
NAMES = (
    *("id", "task", "lang", "root_id", "parent_id", "group", "group_index", "shadow", "eta"),
    *("expires", "retries", "timelimit", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "callbacks", "errbacks", "chain"),
    *("chord", "headers", "reply_to", "correlation_id", "delivery_info", "priority", "properties"),
    *("delivery_mode", "delivery_tag", "body_encoding", "content-type", "content-encoding"),
    *("fleet_deliveries", "fleet_tenant", "fleet_submitted_at", "fleet_lane_reason", "compression"),
    *("get", "update", "_children", "args", "kwargs", "utc", "taskset", "is_eager", "hostname"),
)

#: JSON values of any shape, by Hypothesis.
ANY = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def odd(source: random.Random) -> Any:
    """An odd value."""
    value = copy.deepcopy(source.choice(ODD))
    return [value, 5] if source.random() < 0.1 else value
