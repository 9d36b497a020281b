"""Moderations in a batch."""

from __future__ import annotations

import pytest
from openai.types import ModerationCreateResponse

from primarch_fleet import ModerationRequest
from tests.support.batch_fixture import OpenBench, fleet_app, open_bench

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


async def test_moderations_are_answered_in_a_batch(opened: OpenBench) -> None:
    async with opened() as b:
        texts = ["hello", "some violence"]
        results = await b.send(*(ModerationRequest(model="guard", input=text) for text in texts))
        await b.until_idle()
        for answer, flagged in zip(await b.completions(results), (False, True), strict=True):
            body = ModerationCreateResponse.model_validate(answer.body)
            assert body.results[0].flagged is flagged
            assert answer.receipt.cost_nanousd == 0
        assert b.batches_created() == 1
