"""What servers with OpenAI's batch API write in another form, or leave out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.batch_fixture import OpenBench, chat, profile
from workers.onebox.simulator.script import Script

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "record",
    [
        {"response": {"status_code": "200"}},
        {"response": {"status_code": 201}},
        {"response": {"status_code": None}},
        {"error": {"code": None, "message": None}},
        {"error": {"code": "", "message": ""}},
    ],
)
async def test_an_answer_is_paid_once_whatever_stands_beside_it(
    opened: OpenBench, record: dict[str, Any]
) -> None:
    async with opened(profile()) as b:
        b.simulator.script(Script(scope="line", contains="odd", record=record))
        results = await b.send(chat("odd"), chat("even"))
        await b.until_idle()
        odd, even = await b.settled(results, batches=1)
        assert (odd.text, even.text) == ("Simulated answer to: odd", "Simulated answer to: even")


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ("No disk.", "No disk."),
        (["No disk."], "No disk."),
        ([{"code": "server", "message": "No disk."}], "No disk."),
        ({"data": [None]}, "the provider refused the batch"),
        ({"data": "No disk."}, "No disk."),
        ({"data": [{"code": 5, "message": ["No disk."], "line": "x"}]}, "No disk."),
    ],
)
async def test_a_failed_batch_ends_whatever_form_its_errors_have(
    opened: OpenBench, errors: Any, told: str
) -> None:
    async with opened(profile()) as b:
        failed = {"status": "failed", "errors": errors, "output_file_id": None}
        b.simulator.script(Script(endpoint="batches.retrieve", merge=failed))
        (result,) = await b.send(chat("one"))
        await b.until_idle()
        assert told in str(await b.outcome(result))


@pytest.mark.parametrize("size", [0, -1, "12", None])
async def test_a_file_whose_size_is_not_known_is_read(opened: OpenBench, size: object) -> None:
    async with opened(profile()) as b:
        b.simulator.script(Script(endpoint="files.retrieve", merge={"bytes": size}))
        results = await b.send(chat("one"))
        await b.until_idle()
        await b.settled(results, batches=1)


@pytest.mark.parametrize("endpoint", ["files.create", "batches.create"])
@pytest.mark.parametrize("body", [{}, {"id": None}, {"id": ""}])
async def test_an_answer_without_an_id_is_reconciled(
    opened: OpenBench, endpoint: Any, body: dict[str, Any]
) -> None:
    async with opened(profile()) as b:
        b.simulator.script(Script(endpoint=endpoint, body=body, times=1))
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
