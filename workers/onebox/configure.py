"""Checks a changed fleet.yaml in the environment of a running fleet, and writes the files from it.

`fleet reload` has supervisord start it: the variables with the fleet's secrets are set only there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from config.check import problems
from config.fleet import load
from workers.onebox.simulated import missing_secrets, write_files


def main() -> None:
    """Check the configuration; exit with what is wrong with it, and then change no file."""
    path = Path(sys.argv[1])
    if found := configure(yaml.safe_load(path.read_text()), path.parent):
        sys.exit("\n".join(found))


def configure(startup: dict[str, Any], data_dir: Path) -> list[str]:
    """Write the files that are made from fleet.yaml, or return what is wrong with it.

    Args:
        startup: What `workers.onebox.up` has written.
        data_dir: The folder of the fleet.
    """
    path, url = Path(startup["config_file"]), startup["addresses"].get("simulated provider")
    if url is None:
        return problems(path)
    if found := problems(path, environment=False):
        return found
    config = load(path)
    accounts = config.providers if startup["simulates_all"] else missing_secrets(config)
    write_files(data_dir, config, accounts.keys(), url)
    return []


if __name__ == "__main__":
    main()
