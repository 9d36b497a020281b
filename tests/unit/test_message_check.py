"""The types of a message's headers and body."""

from typing import Any

import pytest
from celery.exceptions import InvalidTaskError

from tasks.message_check import MAX_ID_LENGTH, check_message

HEADERS = {"id": "id", "task": "task", "timelimit": [None, None], "args": [1], "kwargs": {}}
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
LINK = {"task": "link", "args": [], "kwargs": {}, "options": {"task_id": "x"}, "immutable": True}


@pytest.mark.parametrize(
    "headers",
    [
        {
            "timelimit": [3, 1.5],
            "retries": 2,
            "group": "g",
            "group_index": 0,
            "ignore_result": True,
        },
        {"stamped_headers": ["a"], "stamps": {"a": ["b"]}, "shadow": "", "args": ()},
        {"callbacks": [LINK, "name"], "chord": LINK, "unknown": object(), "lang": 5},
    ],
)
def test_a_message_that_celery_can_read_passes(headers: dict[str, Any]) -> None:
    check_message({**HEADERS, **headers}, EMBED)
    check_message({**HEADERS, **headers}, {"errbacks": [LINK], "chain": [LINK], "chord": LINK})
    check_message({**HEADERS, **headers}, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 5),
        ("id", ""),
        ("id", "\ud800"),
        ("id", "x" * (MAX_ID_LENGTH + 1)),
        ("task", ["task"]),
        ("root_id", 1),
        ("group", {"a": 1}),
        ("stamped_headers", 5),
        ("stamped_headers", [[1]]),
        ("stamps", [1]),
        ("timelimit", [1]),
        ("timelimit", 1),
        ("timelimit", [-1, None]),
        ("timelimit", [float("nan"), None]),
        ("timelimit", [1e300, None]),
        ("timelimit", ["1", None]),
        ("retries", -1),
        ("retries", 10**400),
        ("retries", "1"),
        ("ignore_result", "no"),
        ("correlation_id", 7),
        ("reply_to", {}),
        ("kwargs", {1: 2}),
        ("args", {}),
        ("callbacks", [{}]),
        ("errbacks", [{"task": 5}]),
        ("chain", {"task": "link"}),
        ("chord", "name"),
        ("chord", {"task": "link", "options": 5}),
    ],
)
def test_a_header_of_a_wrong_type_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InvalidTaskError, match=f"^{name}"):
        check_message({**HEADERS, name: value}, EMBED)


@pytest.mark.parametrize("name", ["get", "update", "_children", "__dict__", "clear"])
def test_a_header_that_would_replace_a_method_of_the_request_is_refused(name: str) -> None:
    with pytest.raises(InvalidTaskError, match=f"'{name}' is reserved"):
        check_message({**HEADERS, name: 1}, EMBED)


@pytest.mark.parametrize(
    "embed", [5, [], "text", {"id": "other"}, {"chord": 5}, {"callbacks": [None]}, {"chain": [[]]}]
)
def test_a_body_whose_third_part_is_malformed_is_refused(embed: object) -> None:
    with pytest.raises(InvalidTaskError):
        check_message(HEADERS, embed)


def test_the_error_has_no_value_of_the_message() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        check_message({**HEADERS, "retries": "a secret"}, EMBED)
    assert "secret" not in str(caught.value)
