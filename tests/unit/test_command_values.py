"""Values of options: a wrong one is refused with what to write, before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from api import cli as api
from scheduler.cli import main as operators
from workers.onebox import options

UNSET = ""  # what a script writes for a variable that it has not set


@pytest.mark.parametrize(
    ("program", "arguments", "reason"),
    [
        (operators.main, ["dead", "drop", "--tenant", UNSET], "--tenant: it is empty"),
        (operators.main, ["dead", "drop", UNSET], "it is empty"),
        (operators.main, ["dead", "list", "--limit", "-1"], "'-1' is no number above 0"),
        (operators.main, ["cancel", "--model", UNSET], "--model: it is empty"),
        (operators.main, ["cancel", UNSET], "it is empty"),
        (operators.main, ["cancel", "--timeout", "soon", "x"], "a positive number of seconds"),
        (operators.main, ["costs", "--from", "2026-13-01"], "such as 2026-11-29"),
        (operators.main, ["webhook", "--port", "99999"], "a number from 0 to 65535"),
        (api.main, ["serve", "--port", "99999"], "a number from 0 to 65535"),
        (options.options, ["--flower-port", "99999"], "a number from 0 to 65535"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_write(
    program: Any, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program(arguments)
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err
