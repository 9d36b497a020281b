"""Embeddings over loopback."""

import math
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

from tests.integration.simulator.conformance import conforms


def post(http: httpx.Client, value: Any, **changes: Any) -> httpx.Response:
    return http.post("/embeddings", json={"model": "e", "input": value, **changes})


def embed(http: httpx.Client, value: Any, **changes: Any) -> CreateEmbeddingResponse:
    response = post(http, value, **changes)
    assert response.status_code == 200, response.text
    return conforms(CreateEmbeddingResponse, response.json())


def test_a_vector_has_length_one_and_depends_only_on_its_input(http: httpx.Client) -> None:
    first, second, again = embed(http, ["a", "b", "a"]).data
    assert math.isclose(math.hypot(*first.embedding), 1.0, rel_tol=1e-6)
    assert len(first.embedding) == 1536
    assert first.embedding == again.embedding != second.embedding
    assert [item.index for item in (first, second, again)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "vectors", "tokens"),
    [
        ("12345", 1, 2),
        (["1", "12345"], 2, 3),
        ([5, 6, 7], 1, 3),
        ([[5, 6], [7]], 2, 3),
    ],
)
def test_every_form_of_input_is_counted(
    http: httpx.Client, value: Any, vectors: int, tokens: int
) -> None:
    embedded = embed(http, value)
    assert len(embedded.data) == vectors
    assert (embedded.usage.prompt_tokens, embedded.usage.total_tokens) == (tokens, tokens)


def test_dimensions_sets_the_length_of_vectors(http: httpx.Client) -> None:
    vector = embed(http, "a", dimensions=8).data[0].embedding
    assert len(vector) == 8
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-6)


def test_base64_and_float_encode_the_same_vector(client: OpenAI, http: httpx.Client) -> None:
    assert isinstance(post(http, "a", encoding_format="base64").json()["data"][0]["embedding"], str)
    # The SDK requests base64 by default.
    decoded = client.embeddings.create(model="e", input="a").data[0].embedding
    assert decoded == pytest.approx(embed(http, "a").data[0].embedding)


@pytest.mark.parametrize(
    ("value", "changes", "param"),
    [
        (None, {}, "input"),
        ("", {}, "input"),
        ([], {}, "input"),
        ([""], {}, "input"),
        ([1, "a"], {}, "input"),
        ({"a": 1}, {}, "input"),
        (["a"] * 2049, {}, "input"),
        ("a", {"dimensions": 0}, "dimensions"),
        ("a", {"encoding_format": "hex"}, "encoding_format"),
        ("a", {"model": "m"}, "model"),
        ("a" * 4 * 8193, {}, None),
        (["a" * 4 * 8000] * 38, {}, None),
    ],
)
def test_an_invalid_input_is_refused(
    http: httpx.Client, value: Any, changes: dict[str, Any], param: str | None
) -> None:
    response = post(http, value, **changes)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
