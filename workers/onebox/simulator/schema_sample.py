"""JSON values that match a schema."""

from typing import Any

from workers.onebox.simulator.errors import JsonObject

_MAX_DEPTH = 16  # ends schemas that no value satisfies


def sample_value(schema: JsonObject, text: str) -> Any:
    """Return the smallest value for `schema`, with `text` for unconstrained strings.

    Supports `const`, `enum`, `anyOf`/`oneOf`, local `$ref`, `type`, `properties`, `required`,
    `items`, `minItems` and `minimum`; other keywords are ignored.
    """
    return _sample(schema, text, schema, 0)


def _sample(schema: JsonObject, text: str, root: JsonObject, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        return _sample(_resolve(schema["$ref"], root), text, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        # Prefer null: a tree of optional branches then ends at its root.
        return None if {"type": "null"} in options else _sample(options[0], text, root, depth + 1)
    return _of_type(schema, text, root, depth)


def _of_type(schema: JsonObject, text: str, root: JsonObject, depth: int) -> Any:
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return _object(schema, text, root, depth)
    if kind == "array":
        item = schema.get("items", {"type": "string"})
        return [_sample(item, text, root, depth + 1)] * schema.get("minItems", 0)
    number = schema.get("minimum", 0)
    return {"string": text, "integer": number, "number": number, "boolean": True}.get(kind)


def _object(schema: JsonObject, text: str, root: JsonObject, depth: int) -> JsonObject:
    properties = schema.get("properties", {})
    names = schema.get("required", list(properties))
    return {name: _sample(properties.get(name, {}), text, root, depth + 1) for name in names}


def _resolve(ref: str, root: JsonObject) -> JsonObject:
    schema: Any = root
    for name in ref.removeprefix("#").strip("/").split("/"):
        schema = schema.get(name, {}) if name else schema
    return schema if isinstance(schema, dict) else {}
