"""The size of a prompt, counted by part: text by its length, media by what their kind can cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from primarch_fleet.errors import InvalidRequest
from primarch_fleet.validation import LONE_SURROGATE

#: Characters of English text that one token takes on average, from
#: https://platform.openai.com/tokenizer. A byte beyond the first of a character counts like two
#: characters: Chinese takes about one token a character, Cyrillic text about 0.75.
CHARACTERS_PER_TOKEN = 4
#: Tokens that a chat template or the JSON syntax adds for each key of an object, at most.
KEY_OVERHEAD = 4

#: Bytes of one second of audio by format: the fewest that the format allows, and a usual number.
#: WAV at 8 kHz in 8 bits; pcm16 is 24 kHz in 16 bits
#: (https://platform.openai.com/docs/guides/realtime); MP3 and AAC have at least 8 kbit/s
#: (ISO 13818-3), Opus 6 kbit/s (RFC 6716), FLAC about half of WAV.
AUDIO_BYTES_PER_SECOND: dict[str, tuple[int, int]] = {
    "wav": (8_000, 32_000),
    "pcm16": (48_000, 48_000),
    "flac": (4_000, 16_000),
    "mp3": (1_000, 8_000),
    "mpeg": (1_000, 8_000),
    "aac": (1_000, 8_000),
    "m4a": (1_000, 8_000),
}
OTHER_AUDIO_BYTES_PER_SECOND = (750, 3_000)
#: Keys that choose how long a provider keeps a prompt in its cache:
#: https://platform.openai.com/docs/guides/prompt-caching and
#: https://docs.claude.com/en/docs/build-with-claude/prompt-caching
CACHE_LIFETIMES = frozenset({"ttl", "prompt_cache_retention"})
#: The expected tokens of a document, as a share of their bound: most of a PDF is not text.
EXPECTED_FILE_SHARE = 1 / 8


#: JSON's own types first: the check of an abstract class takes ten times as long.
_OBJECTS, _ARRAYS = (dict, Mapping), (list, Sequence)


class MediaTokens(BaseModel):
    """The most tokens that one medium in a prompt counts as, at one model.

    Each value is a bound, because budgets reserve by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Tokens of one picture of any size. The default is the largest picture of Qwen2-VL, from
    #: https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct.
    image: int = Field(16_384, ge=0)
    #: The same for a picture with `detail: low`; None: as any other.
    image_low: int | None = Field(None, ge=0)
    #: The same for a picture with `detail: original`; None: as any other.
    image_original: int | None = Field(None, ge=0)
    #: Tokens of one second of audio. The default is Gemini's, the most of those that are public:
    #: https://ai.google.dev/gemini-api/docs/audio.
    audio_second: float = Field(32, ge=0)
    #: Tokens of one byte of a document such as a PDF: compressed text expands about four times,
    #: and each page may count as a picture too.
    file_byte: float = Field(2, ge=0)
    #: Tokens of a document, sound or video whose length is unknown, because the request names its
    #: address or id.
    unknown_length: int = Field(100_000, ge=0)

    def image_tokens(self, detail: str) -> int:
        """Return the tokens of one picture with a `detail` of OpenAI's API."""
        by_detail = {"low": self.image_low, "original": self.image_original}
        tokens = by_detail.get(detail)
        return self.image if tokens is None else tokens


class Tokens(NamedTuple):
    """Prompt tokens: all of them, and how many of them may be audio and pictures."""

    total: int
    audio: int
    image: int
    #: The number of pictures.
    images: int


@dataclass
class PromptSize:
    """What a prompt consists of, at any model. Media are counted in their own units."""

    characters: int = 0
    #: Bytes of the text in UTF-8.
    text_bytes: int = 0
    #: Tokens that the request contains as numbers.
    token_ids: int = 0
    #: The `detail` of each picture.
    images: list[str] = field(default_factory=list)
    #: Seconds of audio: the most that the data can hold, and the number to expect.
    max_audio_seconds: float = 0.0
    audio_seconds: float = 0.0
    #: Bytes of attached documents.
    file_bytes: int = 0
    #: Media of unknown length.
    unknown_lengths: int = 0
    #: True if the provider is asked to keep the prompt in its cache for longer than minutes.
    keeps_cache: bool = False

    def bound(self, media: MediaTokens, context_length: int | None = None) -> Tokens:
        """Return a number of tokens that the prompt cannot exceed at a model.

        A token of text has at least one byte in every model's vocabulary. No prompt has more tokens
        than the model's context.

        Args:
            media: What the model counts media as.
            context_length: In tokens; None if it is not known.
        """
        audio = int(self.max_audio_seconds * media.audio_second) + bool(self.max_audio_seconds)
        audio += self.unknown_lengths * media.unknown_length
        files, image = int(self.file_bytes * media.file_byte), self._image_tokens(media)
        total = self.text_bytes + self.token_ids + audio + files + image
        limit = total if context_length is None else min(total, context_length)
        audio = min(audio, limit)
        return Tokens(limit, audio, min(image, limit - audio), len(self.images))

    def expected(self, media: MediaTokens) -> Tokens:
        """Return the number of tokens to expect at a model."""
        extra_bytes = self.text_bytes - self.characters
        text = (self.characters + 2 * extra_bytes) // CHARACTERS_PER_TOKEN + 1
        audio = int(self.audio_seconds * media.audio_second)
        audio += self.unknown_lengths * media.unknown_length
        files = int(self.file_bytes * media.file_byte * EXPECTED_FILE_SHARE)
        image = self._image_tokens(media)
        total = text + self.token_ids + audio + files + image
        return Tokens(total, audio, image, len(self.images))

    def _image_tokens(self, media: MediaTokens) -> int:
        return sum(map(media.image_tokens, self.images))

    def add(self, value: object) -> None:
        """Count a JSON value and everything in it."""
        if isinstance(value, str):
            self._add_text(value)
        elif isinstance(value, _OBJECTS):
            add_medium = MEDIA.get(value.get("type"))  # type: ignore[arg-type]
            if add_medium is None or not add_medium(self, value):
                self._add_object(value)
        elif isinstance(value, _ARRAYS):
            if value and type(value[0]) is int and all(type(item) is int for item in value):
                self.token_ids += len(value)
            else:
                for item in value:
                    self.add(item)
        else:
            self._add_text(str(value))

    def _add_object(self, value: Mapping[str, Any]) -> None:
        for key, item in value.items():
            add_medium = MEDIA_KEYS.get(key)
            if add_medium is not None and add_medium(self, value):
                continue
            self.keeps_cache |= key in CACHE_LIFETIMES
            self._add_text(key)
            self.text_bytes += KEY_OVERHEAD
            self.characters += KEY_OVERHEAD
            self.add(item)

    def _add_text(self, text: str) -> None:
        self.characters += len(text)
        self.text_bytes += len(text) if text.isascii() else len(text.encode())


def measure(body: Mapping[str, Any]) -> PromptSize:
    """Measure a request's body.

    Everything that is no picture, sound, video or document counts as text: messages, tools and
    parameters. Content that has another form than OpenAI, Anthropic and vLLM document is text too.

    Raises:
        InvalidRequest: The text contains a lone surrogate, which UTF-8 cannot encode.
    """
    size = PromptSize()
    try:
        size.add(body)
    except UnicodeEncodeError:
        raise InvalidRequest(LONE_SURROGATE) from None
    return size


def with_pictures(texts: Any) -> Any:
    """Return the inputs of an embedding with a part for each that is the data URL of a picture."""
    if isinstance(texts, str):
        return {"type": "image_url", "image_url": texts} if _is_picture(texts) else texts
    return list(map(with_pictures, texts)) if isinstance(texts, list) else texts


# The functions below count a content part. They return False for a part that is text after all.


def _add_image(size: PromptSize, part: Mapping[str, Any]) -> bool:
    source = part.get("image_url")
    detail = source.get("detail") if isinstance(source, Mapping) else part.get("detail")
    size.images.append(str(detail))
    return True


def _add_untyped_image(size: PromptSize, part: Mapping[str, Any]) -> bool:
    source = part["image_url"]
    address = source.get("url") if isinstance(source, Mapping) else source
    return isinstance(address, str) and _add_image(size, part)


def _add_spoken(size: PromptSize, message: Mapping[str, Any]) -> bool:
    """Count what a model said before, with its transcript."""
    sound = message["audio"]
    if not isinstance(sound, Mapping) or not isinstance(sound.get("data"), str):
        return False
    size.add(sound.get("transcript") or "")
    return _add_audio(size, {"input_audio": sound})


def _add_audio(size: PromptSize, part: Mapping[str, Any]) -> bool:
    sound = part.get("input_audio") or part.get("audio_url")
    if not isinstance(sound, Mapping):
        return _add_unknown_length(size, part)
    data, audio_format = sound.get("data"), sound.get("format")
    if data is None:
        head, _, data = str(sound.get("url")).partition(";base64,")
        audio_format = head.partition("/")[2]
    if not data:
        return _add_unknown_length(size, part)
    fewest, usual = AUDIO_BYTES_PER_SECOND.get(str(audio_format), OTHER_AUDIO_BYTES_PER_SECOND)
    size.max_audio_seconds += _decoded_bytes(str(data)) / fewest
    size.audio_seconds += _decoded_bytes(str(data)) / usual
    return True


def _add_file(size: PromptSize, part: Mapping[str, Any]) -> bool:
    source = part.get("file") or part.get("source") or part
    if not isinstance(source, Mapping):
        return False
    if source.get("type") in ("text", "content"):  # a document of Anthropic that is no file
        return False
    data = source.get("file_data") or source.get("data")
    if not isinstance(data, str):
        return _add_unknown_length(size, part)
    if _is_picture(data):
        return _add_image(size, part)
    size.file_bytes += _decoded_bytes(data)
    return True


def _add_unknown_length(size: PromptSize, _: Mapping[str, Any]) -> bool:
    size.unknown_lengths += 1
    return True


def _is_picture(text: str) -> bool:
    """Whether a text is the data URL of a picture."""
    return text.startswith("data:image/")


def _decoded_bytes(data: str) -> int:
    """The size of base64 data, or of a data URL, when it is decoded; at most a few bytes more."""
    return len(data) * 3 // 4


#: How to count a content part, by its `type` in the APIs of OpenAI, Anthropic and vLLM.
MEDIA: dict[str, Callable[[PromptSize, Mapping[str, Any]], bool]] = {
    "image_url": _add_image,
    "input_image": _add_image,
    "image": _add_image,
    "image_embeds": _add_image,
    "image_generation_call": _add_image,
    "computer_screenshot": _add_image,
    "input_audio": _add_audio,
    "audio_url": _add_audio,
    "file": _add_file,
    "input_file": _add_file,
    "document": _add_file,
    "video_url": _add_unknown_length,
    "input_video": _add_unknown_length,
    "video": _add_unknown_length,
    "audio_embeds": _add_unknown_length,
}
#: How to count a medium in an object of another type, or without one, by its key: a part of vLLM,
#: a mask of a tool, a message of the assistant.
MEDIA_KEYS: dict[str, Callable[[PromptSize, Mapping[str, Any]], bool]] = {
    "image_url": _add_untyped_image,
    "audio": _add_spoken,
}
