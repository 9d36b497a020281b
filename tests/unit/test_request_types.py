"""Type checkers accept what the openai SDK's types have: mypy, without a plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import ROOT

PROGRAM = """\
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.shared_params import ResponseFormatJSONObject

from primarch_fleet import CompletionRequest

messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
messages.append({"role": "assistant", "content": "Hi"})
tools: list[ChatCompletionToolParam] = [{"type": "function", "function": {"name": "f"}}]
form: ResponseFormatJSONObject = {"type": "json_object"}
CompletionRequest(model="m", messages=messages, tools=tools, response_format=form)
CompletionRequest(model="m", messages=[{"role": "user", "content": "Hello"}])
CompletionRequest(model="m", messages="Hello")
"""


def test_mypy_accepts_typed_messages_tools_and_formats(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # mypy reads the SDK's types for five seconds, unless an earlier run has kept them.
    assert pytestconfig.cache
    kept = pytestconfig.cache.mkdir("mypy")
    options = ["--strict", "--config-file=", f"--cache-dir={kept}", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", str(program)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    [error] = checked.stdout.splitlines()
    wrong = PROGRAM.splitlines().index('CompletionRequest(model="m", messages="Hello")') + 1
    assert f"program.py:{wrong}: error" in error
    assert "[arg-type]" in error
