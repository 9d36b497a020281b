"""The JSON schema of a class, as the openai SDK sends it for structured outputs.

https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.errors import PydanticInvalidForJsonSchema

Schema = dict[str, Any]

#: What the name of a schema must not contain, and how long it may be.
_NOT_IN_NAMES, _MAX_NAME_LENGTH = re.compile(r"[^a-zA-Z0-9_-]"), 64


def json_schema_of(value: object) -> object:
    """Return the `response_format` of a class; any other value as it is.

    Raises:
        ValueError: The class has no JSON schema.
    """
    if not isinstance(value, type):
        return value
    if not _is_model(value):
        raise ValueError(
            "pass a subclass of pydantic.BaseModel or a pydantic dataclass, or its schema: "
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        )
    name = _NOT_IN_NAMES.sub("_", value.__name__)[:_MAX_NAME_LENGTH]
    schema = {"name": name, "schema": strict_schema(value), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def text_format_of(model: object) -> dict[str, Any]:
    """Return the `text.format` of a class, for the Responses API.

    Raises:
        ValueError: The class has no JSON schema.
    """
    if not (isinstance(model, type) and _is_model(model)):
        raise ValueError(
            "pass a subclass of pydantic.BaseModel or a pydantic dataclass; "
            "a schema belongs in text.format"
        )
    response_format: Any = json_schema_of(model)
    return {"type": response_format["type"], **response_format["json_schema"]}


def strict_schema(model: type) -> Schema:
    """Return the schema of a class in the form that `strict` needs.

    Objects have no other properties, all properties are required, and a reference stands alone.

    Raises:
        ValueError: A field has no JSON schema.
    """
    try:
        schema = TypeAdapter(model).json_schema()
        return _strict(schema, schema)
    except PydanticInvalidForJsonSchema as error:
        raise ValueError(f"{model.__name__} has no JSON schema: {error.message}") from None
    except RecursionError:
        raise ValueError(
            f"{model.__name__} contains itself in a field with a description: leave that out"
        ) from None


def _is_model(value: type) -> bool:
    is_subclass = issubclass(value, BaseModel) and value is not BaseModel
    return is_subclass or is_pydantic_dataclass(value)


def _strict(schema: Schema, root: Schema) -> Schema:
    """Change a schema, and all within it, to the form that `strict` needs."""
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    if "properties" in schema:
        schema["required"] = list(schema["properties"])
    for inner in _inner_schemas(schema):
        _strict(inner, root)
    if len(schema.get("allOf", ())) == 1:
        schema.update(schema.pop("allOf")[0])
    if schema.get("default", ...) is None:  # the type says that null is allowed
        del schema["default"]
    if "$ref" in schema and len(schema) > 1:  # a reference may have no neighbours
        resolved: Any = root
        for key in schema.pop("$ref").removeprefix("#/").split("/"):
            resolved = resolved[key]
        schema.update({**resolved, **schema})
        _strict(schema, root)
    return schema


def _inner_schemas(schema: Schema) -> Iterator[Schema]:
    for name in ("$defs", "definitions", "properties"):
        yield from schema.get(name, {}).values()
    if isinstance(schema.get("items"), dict):
        yield schema["items"]
    for name in ("anyOf", "allOf"):
        yield from schema.get(name, ())
