"""Moderations: an input is flagged for each category that it names."""

from dataclasses import dataclass
from typing import Any

from workers.onebox.simulator.errors import JsonObject, invalid, missing
from workers.onebox.simulator.parameters import required, wrong_type
from workers.onebox.simulator.tokens import Usage

#: https://platform.openai.com/docs/guides/moderation
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
    *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual"),
    *("sexual/minors", "violence", "violence/graphic"),
)


@dataclass(frozen=True, slots=True)
class Moderations:
    """The answer to a request, which is free."""

    model: str
    inputs: list[str]

    @property
    def usage(self) -> Usage:
        """No tokens are charged."""
        return Usage(0, 0)

    def body(self, completion_id: str, created: int) -> JsonObject:
        """OpenAI's object, which has no time."""
        suffix = completion_id.rpartition("-")[2]
        results = [_result(text) for text in self.inputs]
        return {"id": f"modr-{suffix}", "model": self.model, "results": results}


def moderate(body: JsonObject) -> Moderations:
    """Answer a request body. Raises ApiError."""
    value = body.get("input")
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise wrong_type("input", str, value)
    if not value:
        raise invalid("Invalid 'input': empty array.", "input", "empty_array")
    if all(isinstance(part, dict) for part in value):  # parts of one input
        value = [" ".join(str(part.get("text", "")) for part in value)]
    return Moderations(required(body, "model", str), [_text(item) for item in value])


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise wrong_type("input", str, item)
    return item


def _result(text: str) -> JsonObject:
    flags = {name: name in text for name in CATEGORIES}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": {name: 0.9 if flag else 0.01 for name, flag in flags.items()},
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
