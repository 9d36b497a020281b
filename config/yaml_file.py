"""A YAML file whose problems are reported by file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from primarch_fleet.errors import ConfigError
from primarch_fleet.validation import Location, dotted_path, explanations

#: The key that merges another mapping; it may stand there several times.
_MERGE = "<<"
_WORD = re.compile(r"[\w./:-]+")
#: What to write where a value has the wrong form, by pydantic's kind of problem.
_ADVICE = {
    "model_type": "write keys with their values",
    "dict_type": "write keys with their values",
    "list_type": "write a list: `- ` before each entry",
}
#: What PyYAML raises for a value that is none of its type, such as a 30th of February.
_NO_VALUE = (ArithmeticError, AttributeError, LookupError, ValueError)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, which says where a value is none of its type."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _NO_VALUE:  # its message has the value, which may be a secret
            kind = node.tag.rpartition(":")[2]
            problem = f"not a valid {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class YamlFile:
    """The values of a YAML file, and the line of each of them.

    Args:
        path: The file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or has a key twice. The message names the
            file and the line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loader = _Loader(path.read_text())
            self._root = loader.get_single_node()
            repeated = list(_repeated(self._root, ""))
            #: As `yaml.safe_load` returns them.
            self.values: Any = self._root and loader.construct_document(self._root)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = "" if mark is None else f":{mark.line + 1}"
            raise ConfigError(f"{path}{line}: no YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: no YAML: {error}") from None
        except RecursionError:  # an alias of what it stands in, or thousands of brackets
            raise ConfigError(f"{path}: nested too deeply") from None
        if repeated:
            raise ConfigError("\n".join(f"{path}:{line}: {text}" for line, text in repeated))

    def report(self, location: Location, message: str) -> str:
        """Return `file:line: path: message`.

        The line is that of the location, or of a value there that the message names, such as
        `deployments: unknown provider: nowhere`.
        """
        name = dotted_path(location)
        text = f"{name}: {message}" if name else message
        named = tuple(int(part) if part.isdecimal() else part for part in _dotted(text))
        line, node = self._find(location or named)
        line = _line_of_value(node, message) or line
        return f"{self._path}:{line}: {text}" if line else f"{self._path}: {text}"

    def explain(self, error: ValidationError, section: type[BaseModel]) -> list[str]:
        """Return a report of each problem. An unknown key comes with the nearest known key.

        Args:
            error: What pydantic found.
            section: The class of the whole file.
        """
        reports = []
        for location, kind, message in explanations(error):
            unknown = kind == "extra_forbidden"
            text = _ADVICE.get(kind, message)
            if unknown:
                text = f"unknown key{_nearest_key(section, location)}"
            reports.append(self.report(location, text))
        return list(dict.fromkeys(reports))

    def _find(self, location: Location) -> tuple[int, Any]:
        """The line and the node of a location, or of the nearest part above it that is written."""
        line, node = 0, self._root
        for part in location:
            # A key that is also merged from another mapping stands behind that.
            written = {key.value: (key, child) for key, child in _children(node) if key is not None}
            if found := written.get(str(part)):
                line, node = found[0].start_mark.line + 1, found[1]
            else:
                items = node.value if isinstance(node, yaml.SequenceNode) else ()
                if not isinstance(part, int) or part >= len(items):
                    break
                node = items[part]
                line = node.start_mark.line + 1
        return line, node


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value
    elif isinstance(node, yaml.SequenceNode):
        yield from ((None, child) for child in node.value)


def _repeated(node: Any, path: str) -> Iterator[tuple[int, str]]:
    """The line of each key that a mapping has twice, with a message."""
    lines: dict[str, int] = {}
    for index, (key, child) in enumerate(_children(node)):
        name = str(index) if key is None else str(key.value)
        below = f"{path}.{name}".lstrip(".")
        if key is not None and name != _MERGE:
            line = key.start_mark.line + 1
            if name in lines:
                yield line, f"{below}: also on line {lines[name]}; keep one of them"
            lines[name] = line
        yield from _repeated(child, below)


def _dotted(text: str) -> list[str]:
    """The path at the beginning of a message: `routing.fallbacks: ...`."""
    path, colon, _ = text.partition(": ")
    return path.split(".") if colon and " " not in path else []


def _line_of_value(node: Any, message: str) -> int:
    """The last line below a node with a value that a message names; 0 if there is none."""
    words = set(_WORD.findall(message))
    words |= {word.strip(".:;") for word in words}
    return max(_lines_of(node, words), default=0)


def _lines_of(node: Any, words: set[str]) -> Iterator[int]:
    for _, child in _children(node):
        if isinstance(child, yaml.ScalarNode):
            names = {child.value, child.value.rpartition("/")[2]}  # os.environ/NAME
            if names & words and len(child.value) > 1:
                yield child.start_mark.line + 1
        else:
            yield from _lines_of(child, words)


def _nearest_key(section: type[BaseModel], location: Location) -> str:
    kind: Any = section
    for part in location[:-1]:
        fields = [model.model_fields for model in _models(kind)]
        kind = next((known[str(part)].annotation for known in fields if part in known), kind)
    names = [name for model in _models(kind) for name in model.model_fields]
    near = difflib.get_close_matches(str(location[-1]), names, 1)
    return f"; did you mean {near[0]}?" if near else "; remove it"


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type, such as `dict[str, Tenant]`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for argument in get_args(kind):
        yield from _models(argument)
