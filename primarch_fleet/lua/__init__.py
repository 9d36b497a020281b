"""The scripts that producers and workers have Redis run, each in a file of its own."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def script(*names: str) -> str:
    """The text of a script that consists of these files, in this order."""
    return "".join((_FOLDER / f"{name}.lua").read_text() for name in names)
