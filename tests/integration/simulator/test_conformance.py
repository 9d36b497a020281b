"""The conformance check that the other tests use."""

import pytest
from openai.types import FileDeleted
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from tests.integration.simulator.conformance import conforms

_FILE = {"id": "file-1", "object": "file", "deleted": True}


def test_an_object_the_sdk_knows_conforms() -> None:
    assert conforms(FileDeleted, _FILE).id == "file-1"


@pytest.mark.parametrize("change", [{"id": 1}, {"object": "fail"}, {"deleted": "true"}])
def test_a_value_of_the_wrong_type_does_not_conform(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        conforms(FileDeleted, {**_FILE, **change})


def test_a_missing_key_does_not_conform() -> None:
    with pytest.raises(ValidationError):
        conforms(FileDeleted, {"id": "file-1", "object": "file"})


def test_an_unknown_key_deep_inside_does_not_conform() -> None:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"kontent": "x"}, "finish_reason": None}],
    }
    with pytest.raises(AssertionError, match="kontent"):
        conforms(ChatCompletionChunk, chunk)
