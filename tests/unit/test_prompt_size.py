"""Prompts are measured by part: text by its length, media by what their kind can cost."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from config.media_tokens import media_tokens
from primarch_fleet import EmbeddingRequest, ResponsesRequest
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.prompt_size import MediaTokens, measure

MEDIA = MediaTokens(image=1000, image_low=85, audio_second=10, file_byte=2, unknown_length=50_000)
LARGE = "A" * 1_000_000


def body(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


EMPTY = measure(body())


def tokens_of(*parts: Any) -> tuple[int, int]:
    """The tokens that parts add to a prompt: expected, and at most."""
    size = measure(body(*parts))
    return (
        size.expected(MEDIA).total - EMPTY.expected(MEDIA).total,
        size.bound(MEDIA).total - EMPTY.bound(MEDIA).total,
    )


def image(detail: str | None = None) -> dict[str, Any]:
    details = {} if detail is None else {"detail": detail}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{LARGE}"} | details}


def audio(audio_format: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": LARGE, "format": audio_format}}


PICTURE = f"data:image/png;base64,{LARGE}"


def anthropic(kind: str, **source: str) -> dict[str, Any]:
    return {"type": kind, "source": source}


@pytest.mark.parametrize(
    ("part", "expected", "bound"),
    [
        (image(), 1000, 1000),
        (image("high"), 1000, 1000),
        (image("low"), 85, 85),
        (image("original"), 1000, 1000),
        ({"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}, 1000, 1000),
        ({"type": "image_url", "image_url": None}, 1000, 1000),
        ({"type": "input_image", "image_url": f"data:,{LARGE}", "detail": "low"}, 85, 85),
        (anthropic("image", type="base64", data=LARGE), 1000, 1000),
        # 750,000 bytes: 23.4 s of usual WAV, 93.75 s at most; 93.75 s and 750 s of MP3.
        (audio("wav"), 234, 938),
        (audio("mp3"), 937, 7501),
        (audio("strange"), 2500, 10_001),
        ({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{LARGE}"}}, 234, 938),
        ({"type": "audio_url", "audio_url": {"url": "https://example.com"}}, 50_000, 50_000),
        ({"type": "input_audio", "input_audio": None}, 50_000, 50_000),
        ({"type": "file", "file": {"file_data": LARGE}}, 187_500, 1_500_000),
        ({"type": "file", "file": {"file_id": "file-1"}}, 50_000, 50_000),
        ({"type": "input_file", "file_url": "https://example.com"}, 50_000, 50_000),
        (anthropic("document", type="base64", data=LARGE), 187_500, 1_500_000),
        (anthropic("document", type="url", url="https://example.com"), 50_000, 50_000),
        (anthropic("document", type="url", url=PICTURE), 50_000, 50_000),
        ({"type": "file", "file": {"file_data": PICTURE}}, 1000, 1000),
        ({"type": "input_file", "file_data": PICTURE}, 1000, 1000),
        ({"type": "image_generation_call", "id": "i", "result": LARGE}, 1000, 1000),
        ({"type": "computer_screenshot", "image_url": PICTURE}, 1000, 1000),
        ({"type": "computer_screenshot", "file_id": "file-1"}, 1000, 1000),
        ({"type": "image_embeds", "image_embeds": LARGE}, 1000, 1000),
        ({"type": "audio_embeds", "audio_embeds": LARGE}, 50_000, 50_000),
        ({"type": "video_url", "video_url": {"url": "https://example.com"}}, 50_000, 50_000),
    ],
)
def test_a_medium_counts_by_its_kind_and_not_by_its_bytes(
    part: dict[str, Any], expected: int, bound: int
) -> None:
    assert tokens_of(part) == (expected, bound)


def test_a_medium_counts_wherever_it_is_in_the_request() -> None:
    result = {"type": "tool_result", "content": [image()]}
    size = measure({"input": [{"type": "message", "content": [result, image("low")]}]})
    assert sorted(size.images) == ["None", "low"]


@pytest.mark.parametrize("part", [anthropic("document", type="text", data=LARGE), LARGE])
def test_text_counts_by_its_length_in_every_form(part: Any) -> None:
    expected, bound = tokens_of(part)
    assert expected == pytest.approx(250_000, abs=20)
    assert bound == pytest.approx(1_000_000, abs=60)


@pytest.mark.parametrize(
    "part",
    [
        {"image_url": {"url": PICTURE}},
        {"image_url": PICTURE},
        {"type": "image_generation", "input_image_mask": {"image_url": PICTURE}},
    ],
)
def test_a_picture_without_a_type_counts_as_one(part: dict[str, Any]) -> None:
    size = measure(body(part))
    assert (len(size.images), size.characters < 200) == (1, True)


def test_a_schema_with_a_property_of_a_medium_s_name_is_text() -> None:
    schema = {"properties": {"image_url": {"type": "string"}, "audio": {"type": "string"}}}
    size = measure({"tools": [{"type": "function", "function": {"parameters": schema}}]})
    assert (size.images, size.max_audio_seconds) == ([], 0)


def test_what_a_model_said_counts_as_sound() -> None:
    said = {"id": "audio-1", "data": LARGE, "transcript": "Hello!", "expires_at": 1}
    size = measure({"messages": [{"role": "assistant", "audio": said}]})
    assert size.expected(MEDIA).total < 3000
    assert size.bound(MEDIA).audio == 10_001
    assert size.characters > len("Hello!")


@pytest.mark.parametrize("value", [PICTURE, [PICTURE]])
def test_a_picture_to_embed_counts_as_one_and_a_text_as_text(value: Any) -> None:
    embedding = EmbeddingRequest(model="m", input=value).prompt_size()
    assert (len(embedding.images), embedding.characters < 100) == (1, True)
    response = ResponsesRequest(model="m", input=PICTURE).prompt_size()
    assert (response.images, response.characters > len(LARGE)) == ([], True)
    numbers = EmbeddingRequest(model="m", input=[[1, 2], [3]]).prompt_size()
    assert numbers.token_ids == 3


def test_data_of_an_unknown_kind_counts_as_text() -> None:
    assert tokens_of({"type": "hologram", "data": LARGE})[1] > len(LARGE)


def test_token_ids_count_one_token_each() -> None:
    size = measure({"input": [[1, 2, 3], [100_000, 5]]})
    assert size.token_ids == 5
    assert measure({"input": list(range(1000))}).token_ids == 1000


def test_no_prompt_counts_more_than_the_context() -> None:
    size = measure(body(audio("mp3"), LARGE))
    assert size.bound(MEDIA, 4000) == (4000, 4000, 0, 0)
    assert size.bound(MEDIA, 2_000_000).audio == 7501


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        measure(body("\ud800"))


#: Text of many kinds: characters of all scripts, digits, spaces, emoji, control characters.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture(scope="module")
def encoding() -> Iterator[tiktoken.Encoding]:
    """OpenAI's tokenizer, from the file that the litellm package contains."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "litellm_core_utils", "tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield tiktoken.get_encoding("cl100k_base")


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_the_bound_of_text_is_never_below_its_tokens(
    encoding: tiktoken.Encoding, texts: list[str]
) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    tokens = sum(len(encoding.encode(text, disallowed_special=())) for text in texts)
    # OpenAI's chat format adds four tokens to each message and three to the whole.
    assert measure({"messages": messages}).bound(MEDIA).total >= tokens + 4 * len(texts) + 3


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog and runs into the forest. " * 20,
        "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung. " * 20,
        "Все люди рождаются свободными и равными в своём достоинстве и правах. " * 20,  # noqa: RUF001
        "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。" * 20,
    ],
)
def test_the_expected_tokens_of_text_are_near_its_tokens(
    encoding: tiktoken.Encoding, text: str
) -> None:
    tokens = len(encoding.encode(text))
    assert 0.75 * tokens < measure({"content": text}).expected(MEDIA).total < 2.2 * tokens


@pytest.mark.parametrize(
    ("model", "tokens", "low"),
    [
        ("gpt-4o", 1445, 85),
        ("gpt-4o-2024-11-20", 1445, 85),
        ("azure/gpt-4o-mini", 48_169, 2833),
        ("gpt-4.1-mini", 2489, 2489),
        ("gpt-4.1", 1445, 85),
        ("gpt-5-mini-2025-08-07", 2489, 2489),
        ("gpt-5", 1190, 70),
        ("gpt-5.4", 4051, 4051),
        ("o3", 1275, 75),
        ("openai/o1", 1275, 75),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 1600, 1600),
        ("claude-opus-4-7", 4784, 4784),
        ("vertex_ai/gemini-2.5-pro", 4128, 4128),
        ("my-own-model", 16_384, 16_384),
    ],
)
def test_a_picture_counts_at_most_what_the_models_documentation_says(
    model: str, tokens: int, low: int
) -> None:
    media = media_tokens(model)
    assert (media.image_tokens("auto"), media.image_tokens("low")) == (tokens, low)


def test_base64_is_counted_by_its_decoded_size() -> None:
    data = base64.b64encode(bytes(3000)).decode()
    assert measure(body({"type": "file", "file": {"file_data": data}})).file_bytes == 3000
