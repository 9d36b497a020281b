"""What stays of a provider's text: neither a secret nor the prompt that it quotes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from primarch_fleet import CompletionRequest, EmbeddingRequest, ResponsesRequest
from primarch_fleet.errors import ContentPolicyViolation
from primarch_fleet.requests import Request
from tasks import redaction
from tasks.redaction import redacted, without_prompt, without_secrets

PROMPT = 'The patient "Jane Roe" has been ill since 3 May.\nGive a diagnosis.'


def chat(content: Any) -> Request:
    return CompletionRequest(model="m", messages=[{"role": "user", "content": content}])


@pytest.fixture(autouse=True)
def _secrets() -> Iterator[None]:
    redaction.hide({"sk", "sk-hunter2-hunter2", "none", "hunter2"})
    yield
    redaction.hide(())


def test_secrets_are_replaced_and_words_that_contain_a_short_one_stay() -> None:
    message = "key sk-hunter2-hunter2 of nonessential model: none, (hunter2)"
    assert without_secrets(message) == "key *** of nonessential model: ***, (***)"


@pytest.mark.parametrize(
    "quoted",
    [
        PROMPT,
        json.dumps(PROMPT)[1:-1],
        PROMPT[:30],
        PROMPT[25:],
        repr(PROMPT),
        json.dumps({"messages": [{"role": "user", "content": PROMPT}]}),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        chat(PROMPT),
        chat([{"type": "text", "text": PROMPT}]),
        ResponsesRequest(model="m", input=PROMPT),
        ResponsesRequest(model="m", input="x", instructions=PROMPT),
        EmbeddingRequest(model="m", input=["other text", PROMPT]),
    ],
    ids=lambda request: type(request).__name__,
)
def test_what_a_text_quotes_of_a_prompt_is_replaced(quoted: str, request_: Request) -> None:
    shown = without_prompt(f"Invalid value: {quoted} (request 4711)", request_)
    assert shown.startswith("Invalid value: ")
    assert shown.endswith(" (request 4711)")
    for part in ("Jane", "Roe", "patient", "diagnosis", "since 3 May"):
        assert part not in shown


def test_a_prompt_in_another_script_is_found_in_escaped_json() -> None:
    text = f"cannot process {json.dumps('患者は五月から病気です。診断してください')}"
    assert without_prompt(text, chat("患者は五月から病気です。診断してください")) == (
        'cannot process "[prompt]"'
    )


def test_a_short_prompt_is_replaced_as_a_whole() -> None:
    assert without_prompt("no: top secret!", chat("top secret")) == "no: [prompt]!"


def test_a_text_that_only_shares_words_with_the_prompt_stays() -> None:
    text = "This model's maximum context length is 8192 tokens"
    assert without_prompt(text, chat("What is the maximum of 8192 and 3?")) == text


def test_an_error_without_quotation_is_the_same_object() -> None:
    error = ContentPolicyViolation("flagged as violence")
    assert redacted(error, chat(PROMPT)) is error


def test_a_redacted_error_keeps_its_class() -> None:
    error = redacted(ContentPolicyViolation(f"flagged: {PROMPT}, sk-hunter2-hunter2"), chat(PROMPT))
    assert type(error) is ContentPolicyViolation
    assert str(error) == "flagged: [prompt], ***"
