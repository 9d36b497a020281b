"""Requests with pictures, by the shipped fleet.yaml: they cost and count as their pictures do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from config.fleet import load
from config.settings import ROOT
from primarch_fleet import Catalogue, CompletionRequest
from primarch_fleet.routing import LaneDecision, route

#: What a picture of any size costs at gpt-4o: 85 + 8 * 170 tokens.
PICTURE = 1445


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load(ROOT / "config" / "fleet.yaml").catalogue()


def decide(catalogue: Catalogue, characters: int, **fields: Any) -> LaneDecision:
    """The decision for a request with a picture of so many characters of base64.

    Its fallback gpt-4o-mini counts 48,169 tokens for the picture, at a price that is 16 times less.
    """
    picture = {"url": f"data:image/jpeg;base64,{'A' * characters}"}
    content: Any = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": picture}]
    request = CompletionRequest(
        model="gpt-4o", messages=[{"role": "user", "content": content}], max_tokens=300, **fields
    )
    return route(request, request.to_wire(), catalogue, datetime.now(UTC))


def test_a_request_with_a_large_picture_reserves_what_a_picture_can_cost(
    catalogue: Catalogue,
) -> None:
    estimate = decide(catalogue, 2_000_000).estimate
    answer_nanousd, token_nanousd = 300 * 10_000, 2_500
    text_tokens = 250  # at most: one token for each byte of the question and of the JSON
    least = PICTURE * token_nanousd + answer_nanousd
    assert least < estimate.max_cost
    at_the_fallback = 48_169 * 150 + 300 * 600
    assert estimate.max_cost < max(least, at_the_fallback) + text_tokens * token_nanousd


def test_a_picture_counts_its_tokens_in_the_rate_of_its_tenant(catalogue: Catalogue) -> None:
    tokens = decide(catalogue, 1_333_333).estimate.tokens
    assert tokens is not None
    assert PICTURE < tokens - 300 < PICTURE + 30


def test_a_small_cost_cap_admits_a_large_picture(catalogue: Catalogue) -> None:
    assert decide(catalogue, 2_000_000, max_cost=9_000).lane == "realtime"
