"""Bodies outside Redis: reads are checked, and errors say what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config.settings import Settings, settings
from primarch_fleet import Completion
from primarch_fleet.blobs import BlobRef, fetch_blob
from primarch_fleet.contract import Receipt
from primarch_fleet.errors import BodyUnavailable, ConfigError
from primarch_fleet.redis_support import patient_async
from scheduler.store.blobs import BlobStore
from tests.support.receipts import make_receipt

pytestmark = pytest.mark.anyio

BODY = b'{"choices":[{"message":{"content":"long"}}]}'
RECEIPT = make_receipt(lane="batch", strategy="batch")


@pytest.fixture
def answer(tmp_path: Path) -> Completion:
    """A completion whose body is stored in a file."""
    (tmp_path / "body.json").write_bytes(BODY)
    reference = BlobRef.for_data(f"file://{tmp_path}/body.json", BODY)
    return Completion(body_ref=reference, receipt=RECEIPT)


def test_a_body_outside_redis_is_fetched_on_demand(answer: Completion) -> None:
    received = Completion.model_validate(answer.to_wire())
    assert (received.body, received.text) == ({}, "long")
    whole = received.fetched()
    assert whole.body == {"choices": [{"message": {"content": "long"}}]}
    assert whole.body_ref is None
    assert whole.fetched() is whole
    assert Completion.model_validate(whole.to_wire()) == whole


def test_a_producer_without_support_for_references_gets_an_error_and_not_an_empty_answer(
    answer: Completion,
) -> None:
    class OldCompletion(BaseModel):
        body: dict[str, Any]
        receipt: Receipt

    with pytest.raises(ValidationError, match="body"):
        OldCompletion.model_validate(answer.to_wire())
    assert OldCompletion.model_validate(answer.fetched().to_wire()).body
    assert "body_ref" not in answer.fetched().to_wire()


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_a_changed_or_missing_body_is_an_error(
    answer: Completion, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "body.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(BODY.replace(b"long", b"lost") if damage == "changed" else BODY[:-1])
    with pytest.raises(BodyUnavailable, match=f"44 bytes at file://{path}: FileNotFoundError"):
        answer.fetched()


def test_the_error_names_the_packages_that_a_producer_must_install(
    answer: Completion, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BodyUnavailable, match=r"pip install fsspec, .*Install s3fs"):
        fetch_blob(BlobRef.for_data("s3://bucket/body.json", BODY))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(BodyUnavailable, match="pip install fsspec"):
        answer.fetched()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/fleet", "Install s3fs"),
        ("nowhere://bucket", "nowhere"),
        ("file://{file}/below", "Not a directory"),
    ],
)
async def test_a_storage_url_that_cannot_be_used_is_a_configuration_error(
    tmp_path: Path, url: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    client = patient_async("redis://127.0.0.1:1")
    with pytest.raises(ConfigError, match=f"FLEET_BODIES: .*{words}"):
        await BlobStore(client, _now, url.format(file=tmp_path / "file")).check()
    await BlobStore(client, _now, "").check()
    await BlobStore(client, _now, f"file://{tmp_path}/new/one").check()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/srv/bodies", "no protocol"),
        ("ftp://me:hunter2@host/bodies", "remove the credentials"),
        ("https://host/bodies?token=hunter2", "remove the credentials"),
    ],
)
def test_a_storage_url_with_credentials_is_rejected_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setenv("FLEET_BODIES", url)
    settings.cache_clear()
    with pytest.raises(ConfigError, match=f"FLEET_BODIES: .*{words}") as caught:
        settings()
    assert "hunter2" not in str(caught.value)
    settings.cache_clear()
    assert "bucket" not in repr(Settings(bodies="s3://bucket/fleet"))


async def _now() -> float:
    return 0.0
