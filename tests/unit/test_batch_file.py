"""The lines of a batch file as requests, and the files that `fleet batch` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primarch_fleet.batch_file.input_file import Line, RunOptions, count_lines, read_lines
from primarch_fleet.batch_file.output_file import (
    ErrorFile,
    OutputFile,
    default_error_path,
    encode_line,
)
from primarch_fleet.errors import InvalidRequest

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


def line(custom_id: str = "1", url: str = "/v1/chat/completions", **body: Any) -> bytes:
    values = {"custom_id": custom_id, "method": "POST", "url": url, "body": CHAT | body}
    return json.dumps(values).encode() + b"\n"


def parsed(folder: Path, *lines: bytes, **options: Any) -> list[Line]:
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(lines))
    return list(read_lines(path, RunOptions(**options)))


def test_a_body_becomes_the_request_that_the_sdk_would_send(tmp_path: Path) -> None:
    (one,) = parsed(tmp_path, line(metadata={"a": "b"}, logit_bias={"5": -1}, top_k=3, stop=None))
    assert one.error is None
    assert one.request is not None
    assert one.request.lane == "batch"
    assert one.request.metadata == {}
    assert one.request.body() == CHAT | {
        "metadata": {"a": "b"},
        "logit_bias": {"5": -1},
        "top_k": 3,
    }


def test_blank_lines_a_byte_order_mark_and_azures_urls_are_read(tmp_path: Path) -> None:
    lines = parsed(
        tmp_path, b"\xef\xbb\xbf", line("1"), b"\n  \r\n", line("2", "/chat/completions")[:-1]
    )
    assert [(one.number, one.custom_id, one.error) for one in lines] == [
        (1, "1", None),
        (4, "2", None),
    ]
    assert count_lines(tmp_path / "in.jsonl") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line(lane="local"), "body.lane: no parameter"),
        (line(tenant_id="x"), "body.tenant_id: no parameter"),
        (line(api_key="sk-secret"), "api_key"),
        (line(temperature="hot"), "temperature"),
        (line(stream=True), "a batch cannot stream"),
        (line("1", "/v1/embedings"), "did you mean /v1/embeddings?"),
        (line("1", "/v1/images"), "url: '/v1/images' is not served"),
        (line(user="\ud83d"), "lone surrogate"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"{'custom_id': 'secret'}\n", "the line is not JSON at character 2"),
    ],
)
def test_a_line_that_is_no_request_says_what_to_change(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    (one,) = parsed(tmp_path, text)
    assert one.request is None
    assert reason in str(one.error)
    assert "secret" not in str(one.error)


def test_a_line_has_one_identity_and_any_other_line_has_another(tmp_path: Path) -> None:
    def identity(text: bytes, **options: Any) -> str:
        (one,) = parsed(tmp_path, text, **{"file_name": "in.jsonl"} | options)
        return one.task_id

    known = identity(line(seed=1, user="u"))
    assert identity(line(user="u", seed=1)) == known
    assert identity(line(user="u", seed=1), lane="realtime") == known
    others = [
        identity(line("2", seed=1, user="u")),
        identity(line(seed=2, user="u")),
        identity(line(seed=1, user="u"), run="again"),
        identity(line(seed=1, user="u"), file_name="other.jsonl"),
        identity(line(seed=1, user="u"), tenant_id="other"),
    ]
    assert len({known, *others}) == 6


def test_an_output_without_its_end_is_continued_after_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = encode_line("a-1", "ö", {"status_code": 200, "body": {}}, None)
    path.write_bytes(whole + whole[:40])
    with OutputFile(path) as output:
        assert len(output.earlier) == 1
        with pytest.raises(InvalidRequest, match="another `fleet batch` writes to it"):
            OutputFile(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "notes without an end", '{"custom_id": "1"}\n'])
def test_a_file_of_something_else_is_neither_output_nor_error_file(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="choose another output file"):
        OutputFile(path)
    with pytest.raises(InvalidRequest, match="choose another error file"):
        ErrorFile(path)
    assert path.read_text() == text


def test_a_run_without_errors_leaves_no_error_file(tmp_path: Path) -> None:
    path = default_error_path(tmp_path / "out.jsonl")
    assert path.name == "out.errors.jsonl"
    with ErrorFile(path) as errors:
        errors.write(3, None, "line-3", InvalidRequest("no"))
    (error,) = (json.loads(text) for text in path.read_text().splitlines())
    assert error == {
        "id": "batch_req_line3",
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_request", "message": "no", "param": None, "line": 3},
    }
    with ErrorFile(path):
        pass
    assert not path.exists()


def test_text_with_half_of_a_surrogate_pair_is_written_as_json(tmp_path: Path) -> None:
    body = {"text": "cut \ud83d"}
    text = encode_line("a", "1", {"body": body}, None)
    assert json.loads(text)["response"]["body"] == body
    assert "ü" in encode_line("a", "ü", None, None).decode()
