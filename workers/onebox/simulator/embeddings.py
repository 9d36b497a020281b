"""Embeddings: unit vectors that depend only on the input."""

import array
import base64
import hashlib
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, missing
from workers.onebox.simulator.parameters import integer, required, wrong_type
from workers.onebox.simulator.tokens import Usage, count

_DEFAULT_DIMENSIONS = 1_536
_MAX_DIMENSIONS = 3_072
_MAX_INPUTS = 2_048
_MAX_TOKENS_PER_INPUT = 8_192
_MAX_TOKENS = 300_000

Input = str | list[int]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer to a request; its vectors are computed when its body is written."""

    model: str
    inputs: list[Input]
    dimensions: int
    base64: bool
    usage: Usage

    def body(self, completion_id: str, created: int) -> JsonObject:
        """OpenAI's `list` of embeddings, which has neither id nor time."""
        vectors = (vector(item, self.dimensions) for item in self.inputs)
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _base64(values) if self.base64 else values.tolist(),
                }
                for index, values in enumerate(vectors)
            ],
            "model": self.model,
            "usage": {
                "prompt_tokens": self.usage.input_tokens,
                "total_tokens": self.usage.input_tokens,
            },
        }


def embed(body: JsonObject) -> Embeddings:
    """Answer a request body. Raises ApiError."""
    model = required(body, "model", str)
    inputs = _inputs(body.get("input"))
    tokens = [_tokens(item) for item in inputs]
    if sum(tokens) > _MAX_TOKENS:
        text = f"Requested {sum(tokens)} tokens, max {_MAX_TOKENS} tokens per request"
        raise invalid(text, None, "max_tokens_per_request")
    dimensions = integer(body, "dimensions", 1, _MAX_DIMENSIONS) or _DEFAULT_DIMENSIONS
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise invalid(f"Invalid value: '{form}'.", "encoding_format", "invalid_value")
    return Embeddings(model, inputs, dimensions, form == "base64", Usage(sum(tokens), 0))


def vector(item: Input, dimensions: int) -> "array.array[float]":
    """A vector of length 1, in single precision, derived from a hash of `item`."""
    digest = hashlib.shake_256(json.dumps(item).encode()).digest(2 * dimensions)
    numbers = array.array("h", digest)
    if sys.byteorder == "big":
        numbers.byteswap()
    # Add 0.5, so that no vector is null, however short.
    length = math.sqrt(sum((number + 0.5) ** 2 for number in numbers))
    return array.array("f", ((number + 0.5) / length for number in numbers))


def _inputs(value: Any) -> list[Input]:
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type("input", str, value)
    if not value or len(value) > _MAX_INPUTS:
        text = f"Invalid 'input': expected an array with 1 to {_MAX_INPUTS} elements."
        raise invalid(text, "input", "array_above_max_length" if value else "empty_array")
    return [value] if isinstance(value[0], int) else value


def _tokens(item: Any) -> int:
    if isinstance(item, str):
        tokens = count(item)
    elif isinstance(item, list) and all(type(token) is int and token >= 0 for token in item):
        tokens = len(item)
    else:
        raise wrong_type("input", str, item)
    if tokens == 0:
        raise invalid("Invalid 'input': it cannot be empty.", "input")
    if tokens > _MAX_TOKENS_PER_INPUT:
        text = (
            f"This model's maximum context length is {_MAX_TOKENS_PER_INPUT} tokens, however "
            f"you requested {tokens} tokens ({tokens} in your prompt; 0 for the completion). "
            "Please reduce your prompt; or completion length."
        )
        raise ApiError(400, text)
    return tokens


def _base64(values: "array.array[float]") -> str:
    little = array.array("f", values)
    if sys.byteorder == "big":
        little.byteswap()
    return base64.b64encode(little.tobytes()).decode("ascii")
