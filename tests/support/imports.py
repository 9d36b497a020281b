"""The packages in the order in which they may import each other, and their imports."""

import ast
import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from config.settings import ROOT

#: Each may import itself and what stands before it.
ORDER = ["primarch_fleet", "config", "tasks", "workers", "scheduler", "api"]


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Each module of a package with each top-level package that it imports."""
    for path in (ROOT / package).rglob("*.py"):
        for node in _nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [node.module or ""]
            for name in names:
                yield str(path), name.partition(".")[0]


@functools.cache
def imports_of_modules() -> dict[str, set[str]]:
    """The modules of all packages, each with those that it imports anywhere, also for types."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ORDER
        for path in (ROOT / package).rglob("*.py")
    }
    return {
        module: {
            found
            for node in _nodes(path)
            for name in _imported_names(node)
            if (found := _module(name, paths)) and found != module
        }
        for module, path in paths.items()
    }


@functools.cache
def _nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, wherever they stand."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _module(name: str, modules: Mapping[str, object]) -> str | None:
    """The module of an imported name: the name itself, or what precedes its last dot."""
    return next((one for one in (name, name.rpartition(".")[0]) if one in modules), None)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of a circle in their order; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        nodes: list[str] = error.args[1]
        return nodes
    return []
