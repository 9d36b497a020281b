"""The rule by which tokens are counted."""

from typing import NamedTuple


class Usage(NamedTuple):
    """Tokens of one request; the details are part of the first two."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    reasoning_tokens: int = 0


def utf8(text: str) -> bytes:
    """`text` as bytes; a lone surrogate, which JSON can contain, is kept."""
    return text.encode("utf-8", "surrogatepass")


def count(text: str) -> int:
    """The tokens of a text: ceil(UTF-8 bytes / 4), 0 for the empty text."""
    return -(-len(utf8(text)) // 4)


def cut(text: str, limit: int) -> str:
    """The longest prefix of `text` that has at most `limit` tokens."""
    return utf8(text)[: limit * 4].decode("utf-8", "ignore")
