"""Files over loopback."""

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import FileDeleted, FileObject

from tests.integration.simulator.conformance import conforms
from workers.onebox.simulator import VirtualClock

DAY = 86_400


def post(http: httpx.Client, name: str = "a.jsonl", **data: Any) -> httpx.Response:
    return http.post("/files", files={"file": (name, b"{}\n")}, data={"purpose": "batch", **data})


def test_an_uploaded_file_is_an_openai_object(http: httpx.Client) -> None:
    uploaded = conforms(FileObject, post(http).json())
    assert (uploaded.filename, uploaded.bytes, uploaded.purpose) == ("a.jsonl", 3, "batch")
    assert uploaded.created_at == 1_000_000
    assert uploaded.expires_at == 1_000_000 + 30 * DAY
    retrieved = conforms(FileObject, http.get(f"/files/{uploaded.id}").json())
    assert retrieved == uploaded


def test_downloaded_content_equals_uploaded_content(client: OpenAI) -> None:
    content = bytes(range(256))
    file = client.files.create(file=("x.bin", content), purpose="user_data")
    assert client.files.content(file.id).content == content
    assert file.expires_at is None


def test_a_batch_file_must_be_jsonl(http: httpx.Client) -> None:
    response = post(http, name="a.txt")
    assert response.status_code == 400
    expected = "Invalid file format for Batch API. Must be .jsonl"
    assert response.json()["error"]["message"] == expected


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"purpose": None}, "purpose"),
        ({"purpose": "fun"}, "purpose"),
        ({"expires_after[anchor]": "now"}, "expires_after.anchor"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after.seconds",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
            "expires_after.seconds",
        ),
    ],
)
def test_an_invalid_upload_is_refused(http: httpx.Client, data: dict[str, Any], param: str) -> None:
    fields = {"purpose": "batch", **data}
    sent = {name: value for name, value in fields.items() if value is not None}
    response = http.post("/files", files={"file": ("a.jsonl", b"{}")}, data=sent)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_an_upload_without_a_file_is_refused(http: httpx.Client) -> None:
    response = http.post("/files", data={"purpose": "batch"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "file"


def test_an_expired_file_does_not_exist(client: OpenAI, clock: VirtualClock) -> None:
    file = client.files.create(
        file=("a.jsonl", b"{}"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    clock.advance(3599)
    assert client.files.retrieve(file.id).expires_at == 1_003_600
    clock.advance(1)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert client.files.list().data == []


def test_a_deleted_file_does_not_exist(client: OpenAI, http: httpx.Client) -> None:
    file_id = post(http).json()["id"]
    assert conforms(FileDeleted, http.delete(f"/files/{file_id}").json()).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(file_id)


def test_the_list_is_newest_first_and_pages(client: OpenAI) -> None:
    uploaded = [
        client.files.create(file=(f"{number}.jsonl", b"{}"), purpose="batch").id
        for number in range(5)
    ]
    first = client.files.list(limit=2)
    assert [file.id for file in first.data] == [uploaded[4], uploaded[3]]
    assert first.has_more
    assert [file.id for file in client.files.list(limit=2)] == uploaded[::-1]
    assert [file.id for file in client.files.list(order="asc")] == uploaded


def test_the_list_filters_by_purpose(client: OpenAI) -> None:
    client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    other = client.files.create(file=("a.txt", b"{}"), purpose="user_data")
    assert [file.id for file in client.files.list(purpose="user_data")] == [other.id]
