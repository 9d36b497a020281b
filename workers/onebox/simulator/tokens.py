"""The one rule by which text is counted."""

from typing import NamedTuple


class Usage(NamedTuple):
    """Tokens of one request."""

    input_tokens: int
    output_tokens: int


def utf8(text: str) -> bytes:
    """`text` as bytes; a lone surrogate, which JSON can carry, is kept rather than refused."""
    return text.encode("utf-8", "surrogatepass")


def count(text: str) -> int:
    """ceil(UTF-8 bytes / 4): 0 for the empty text, never less than 1 for any other."""
    return -(-len(utf8(text)) // 4)


def cut(text: str, limit: int) -> str:
    """The longest beginning of `text` that counts at most `limit` tokens."""
    return utf8(text)[: limit * 4].decode("utf-8", "ignore")
