"""The lane's scripts, as Redis runs them: what the files in lua/ say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

#: Those that begin with lua/waiting.lua.
MOVING = {"park", "claim", "requeue", "leave", "finish"}


@cache
def texts() -> dict[str, str]:
    """The text of each script by its name."""
    files = {path.stem: path.read_text() for path in Path(__file__).with_name("lua").glob("*.lua")}
    head = files.pop("waiting")
    return {name: head + text if name in MOVING else text for name, text in files.items()}
