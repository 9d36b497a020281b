"""The packages in the order in which they may import each other, and their imports."""

import ast
from collections.abc import Iterator

from config.settings import ROOT

#: Each may import itself and what stands before it.
ORDER = ["primarch_fleet", "config", "tasks", "workers", "scheduler", "api"]


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Each module of a package with each top-level package that it imports."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [node.module or ""]
            for name in names:
                yield str(path), name.partition(".")[0]
