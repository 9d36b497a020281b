"""Describes a name of another package, without calling it: its signature, or what it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from functools import cached_property as functools_cached_property
from types import NoneType
from typing import Any

from kombu.utils.objects import cached_property

MISSING = "missing"
#: Types whose values are shown.
PLAIN_TYPES = (bool, int, float, str, NoneType)
PROPERTIES = (property, functools_cached_property, cached_property)


def describe(name: str) -> str:
    """Describe `module:Class.member` or `module:function`.

    Returns:
        The signature of a function or method, without annotations; `class`, `property` or
        `instance attribute`; the type of any other value, with a plain value; or MISSING.
    """
    module_name, _, path = name.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError:
        return MISSING
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    try:
        value = inspect.getattr_static(owner, last)
    except AttributeError:
        return "instance attribute" if _is_assigned(owner, last) else MISSING
    return _described(value)


def _described(value: Any) -> str:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if inspect.isclass(value):
        return "class"
    if isinstance(value, PROPERTIES):
        return "property"
    if callable(value):
        return _signature(value)
    kind = type(value).__name__
    return f"{kind} = {value!r}" if type(value) in PLAIN_TYPES else kind


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [_plain(parameter) for parameter in signature.parameters.values()]
    plain = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(plain).replace("Ellipsis", "...")


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter without its annotation; a default that is no plain value becomes `...`."""
    default = parameter.default
    if default is not inspect.Parameter.empty and not isinstance(default, PLAIN_TYPES):
        default = ...
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


def _is_assigned(owner: Any, name: str) -> bool:
    """True if a class declares the attribute, or assigns `self.<name>`."""
    if not inspect.isclass(owner):
        return False
    return any(
        name in _assigned(base) or name in getattr(base, "__annotations__", {})
        for base in owner.__mro__
        if base is not object and base.__module__ != "builtins"
    )


def _assigned(owner: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # written in C
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
