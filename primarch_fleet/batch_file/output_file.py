"""The output: OpenAI's batch output file with the answers, and its error file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from primarch_fleet.batch_file.input_file import identity
from primarch_fleet.contract import Completion
from primarch_fleet.errors import FleetError, InvalidRequest

#: How each line begins, by which the rest of an interrupted write is known.
_START = b'{"id": "batch_req_'


class OutputFile(AbstractContextManager["OutputFile"]):
    """The answers of a run, each on a line. A later run adds those that are missing.

    Args:
        path: The file; it is created if it does not exist. A line that an earlier run was killed
            at is removed.

    Raises:
        InvalidRequest: Another run writes to the file, or it has other lines than answers.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab+")
        try:
            self._lock()
            #: The custom_ids of the answers that an earlier run wrote, by `identity`.
            self.earlier = set(self._read())
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, custom_id: str, task_id: str, completion: Completion) -> None:
        """Add an answer. It is in the file after `flush`."""
        response = {"status_code": 200, "request_id": task_id, "body": completion.body}
        self._file.write(encode_line(task_id, custom_id, response, None))

    def flush(self) -> None:
        """Hand all lines to the operating system: they stay if this process is killed."""
        self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"{self._path}: another `fleet batch` writes to it") from None

    def _read(self) -> Iterator[bytes]:
        """The custom_ids of the file, whose incomplete last line is removed."""
        end = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n") and _START.startswith(line[: len(_START)]):
                self._file.truncate(end)
                break
            end += len(line)
            yield identity(self._custom_id(number, line))

    def _custom_id(self, number: int, line: bytes) -> str:
        try:
            answer = json.loads(line)
            if isinstance(answer["response"], dict) and isinstance(answer["custom_id"], str):
                return str(answer["custom_id"])
        except (ValueError, KeyError, TypeError):
            pass
        raise InvalidRequest(
            f"{self._path}, line {number}: no answer of a batch; choose another output file"
        )


class ErrorFile(AbstractContextManager["ErrorFile"]):
    """The lines without an answer, each with its reason, of the last run.

    The file is there only if there are such lines.

    Args:
        path: The file; that of an earlier run is replaced.
        message_of: Returns the text of an error, by default its own.

    Raises:
        InvalidRequest: The file exists and is no error file.
        OSError: The file cannot be removed.
    """

    def __init__(self, path: Path, message_of: Callable[[FleetError], str] = str) -> None:
        self._path, self._message_of = path, message_of
        self._file: Any = None
        #: The lines that were written.
        self.count = 0
        _remove_errors(path)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, number: int, custom_id: str | None, task_id: str, error: FleetError) -> None:
        """Add the reason why a line of the input, by its number, has no answer."""
        if self._file is None:
            self._file = self._path.open("wb")
        reason = {
            "code": error.code,
            "message": self._message_of(error),
            "param": None,
            "line": number,
        }
        self._file.write(encode_line(task_id, custom_id, None, reason))
        self.count += 1

    def flush(self) -> None:
        """Hand all lines to the operating system: they stay if this process is killed."""
        if self._file is not None:
            self._file.flush()


#: Line ends for `str.splitlines`, which many readers of such files use. JSON escapes all others.
_LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def encode_line(
    task_id: str,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> bytes:
    """Return a line of OpenAI's output and error files, in UTF-8."""
    values = {
        "id": f"batch_req_{task_id.replace('-', '')}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    try:
        text = json.dumps(values, ensure_ascii=False)
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which a cut answer may end with
        return json.dumps(values).encode() + b"\n"


def _remove_errors(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(len(_START))
    if not _START.startswith(start):
        raise InvalidRequest(f"{path}: no error file of a batch; choose another error file")
    path.unlink()


def default_error_path(output: Path) -> Path:
    """Return the error file of an output file: `out.errors.jsonl` beside `out.jsonl`."""
    return output.with_name(f"{output.stem}.errors{output.suffix or '.jsonl'}")


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, whether it exists or not."""
    return os.path.realpath(one) == os.path.realpath(other)
