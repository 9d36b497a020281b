"""The tokens of one answer by kind, read from whatever form a provider reports them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, NamedTuple

#: No model takes as many tokens: a larger count is a provider's mistake and counts as none.
MAX_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer by kind. Each token counts in one kind only."""

    text_input_tokens: int = 0
    #: Read from the provider's cache.
    cached_input_tokens: int = 0
    cached_audio_input_tokens: int = 0
    cached_image_input_tokens: int = 0
    #: The same of text that the request marked for the cache, where that has a price of its own.
    explicit_cached_input_tokens: int = 0
    #: Written to the provider's cache, by how long it keeps them; without a time, minutes.
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_write_12h_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    video_input_tokens: int = 0
    text_output_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    video_output_tokens: int = 0
    #: Searches that the provider made for the answer, each at a fee.
    web_searches: int = 0
    maps_searches: int = 0
    #: Pictures that the provider counts one by one, each at a fee: those of embeddings.
    images: int = 0
    #: The tier that served the request, in the provider's words; None if the answer has none.
    service_tier: str | None = None
    #: What else the provider says of how it served the request: a region, `fast`.
    surcharges: tuple[str, ...] = ()
    #: True if the provider reported no tokens, and the fleet counted them itself.
    estimated: bool = False

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt, the cached ones included."""
        return sum(_INPUT_COUNTS(self))

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer, reasoning included."""
        return sum(_OUTPUT_COUNTS(self))

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not empty."""
        return {name: value for name, value in zip(_NAMES, _VALUES(self), strict=True) if value}


_NAMES = tuple(field.name for field in fields(Usage))
#: The kinds of token, input first: the order of `token_counts`.
INPUT_KINDS = _NAMES[: _NAMES.index("text_output_tokens")]
OUTPUT_KINDS = _NAMES[len(INPUT_KINDS) : _NAMES.index("web_searches")]
_VALUES: Callable[[Usage], tuple[Any, ...]] = attrgetter(*_NAMES)
_Counts = Callable[[Usage], tuple[int, ...]]
_INPUT_COUNTS: _Counts = attrgetter(*INPUT_KINDS)
_OUTPUT_COUNTS: _Counts = attrgetter(*OUTPUT_KINDS)
#: Return the tokens of a Usage by kind: a tuple in the order of INPUT_KINDS, then OUTPUT_KINDS.
token_counts: _Counts = attrgetter(*INPUT_KINDS, *OUTPUT_KINDS)


#: Names of the details of the prompt and of the answer: of chats, of responses, and of what else
#: OpenAI bills by the token, such as transcriptions.
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
#: The region of Anthropic with the highest prices.
_DEAREST_REGION = "us"
#: Anthropic's names of what is beside `input_tokens`.
_ANTHROPIC_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")


def parse_usage(usage: object, service_tier: object = None) -> Usage | None:
    """Read a provider's usage object, in any of the forms below. Never raises.

    - OpenAI: `prompt_tokens` with the cached ones, details apart (chat and embeddings), or
      `input_tokens` with `input_tokens_details` (Responses);
    - Anthropic: `input_tokens` without `cache_read_input_tokens` and `cache_creation_input_tokens`;
    - what LiteLLM makes of these and of other providers' forms.

    Details that exceed their total are cut; what is not a count counts as 0. `total_tokens` tells
    whether cached and reasoning tokens are within the prompt and the answer or beside them, and
    how many tokens a prompt or an answer has that is not counted.

    Args:
        usage: The `usage` of an answer, as JSON.
        service_tier: The answer's own `service_tier`, if it has one.

    Returns:
        The usage; None if the provider reported no tokens.
    """
    if not isinstance(usage, dict):
        return None
    prompt_details = _details(usage, *_PROMPT_DETAILS)
    output_details = _details(usage, *_OUTPUT_DETAILS)
    cache = _cache_counts(usage, prompt_details)
    prompt = _first(usage, "prompt_tokens", "input_tokens")
    output = _first(usage, "completion_tokens", "output_tokens")
    reasoning = _first(output_details, "reasoning_tokens") or _first(usage, "reasoning_tokens")
    total = _first(usage, "total_tokens")
    if _cache_is_beside_prompt(usage, cache, prompt, total - output, reasoning):
        prompt += cache.total
    if not prompt and total > output:
        prompt = total - output
    elif total > prompt + output:
        reasoning = reasoning or (total - prompt - output if output else 0)
        output = total - prompt
    elif not total and reasoning > output:
        output += reasoning
    images = _first(prompt_details, "image_count")
    if not (prompt or output or images):
        return None
    tier = service_tier if isinstance(service_tier, str) and service_tier else None
    tier = tier or usage.get("service_tier")
    kinds: dict[str, Any] = _input_kinds(prompt, cache, prompt_details)
    kinds |= _output_kinds(output, reasoning, output_details)
    return Usage(
        **kinds,
        web_searches=_web_searches(usage, prompt_details),
        maps_searches=_first(prompt_details, "google_maps_grounding_requests"),
        images=images,
        service_tier=tier.lower() if isinstance(tier, str) and tier else None,
        surcharges=_surcharges(usage),
    )


class _CacheCounts(NamedTuple):
    read: int
    #: Whether what was read is what the request marked for the cache.
    is_explicit: bool
    read_audio: int
    read_image: int
    written: int
    written_1h: int
    written_12h: int

    @property
    def total(self) -> int:
        return self.read + self.written + self.written_1h + self.written_12h


_NO_CACHE = _CacheCounts(0, False, 0, 0, 0, 0, 0)


def _cache_counts(usage: Mapping[str, Any], details: Mapping[str, Any]) -> _CacheCounts:
    # https://docs.claude.com/en/docs/build-with-claude/prompt-caching, DeepSeek's and Moonshot's
    # API references; LiteLLM, OpenAI and Qwen put the same counts into the details of the prompt.
    # https://help.aliyun.com/en/model-studio/context-cache has Qwen's `cache_type`.
    read = _first(details, "cached_tokens") or _first(
        usage, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens"
    )
    written = _first(
        details, "cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens"
    ) or _first(usage, "cache_creation_input_tokens")
    by_lifetime = _details(usage, "cache_creation") or _details(
        details, "cache_creation_token_details", "cache_creation"
    )
    if not (read or written or by_lifetime):
        return _NO_CACHE
    minutes = sum(_first(by_lifetime, f"ephemeral_{time}_input_tokens") for time in ("5m", "30m"))
    hour = _first(by_lifetime, "ephemeral_1h_input_tokens")
    half_day = _first(by_lifetime, "ephemeral_12h_input_tokens")
    by_kind = _details(details, "cached_tokens_details")
    return _CacheCounts(
        read=read,
        is_explicit=details.get("cache_type") == "ephemeral",
        read_audio=_first(by_kind, "audio_tokens"),
        read_image=_first(by_kind, "image_tokens"),
        written=max(minutes, written - hour - half_day),
        written_1h=hour,
        written_12h=half_day,
    )


def _cache_is_beside_prompt(
    usage: Mapping[str, Any], cache: _CacheCounts, prompt: int, total_prompt: int, reasoning: int
) -> bool:
    """Whether the prompt's count is without the tokens that were read from or written to a cache.

    Anthropic's is. Gateways send Anthropic's names in OpenAI's form, with either meaning.

    Args:
        total_prompt: Tokens that are not of the answer; not positive if that is unknown.
    """
    anthropic = not usage.keys().isdisjoint(_ANTHROPIC_CACHE)
    if total_prompt > 0:
        is_in_total = 0 < cache.total <= total_prompt - prompt
        is_the_rest = cache.total == total_prompt - prompt and not reasoning
        return is_in_total and (anthropic or cache.total > prompt or is_the_rest)
    return anthropic and ("prompt_tokens" not in usage or cache.total > prompt)


def _input_kinds(prompt: int, cache: _CacheCounts, details: Mapping[str, Any]) -> dict[str, int]:
    left = _Remainder(prompt)
    # As in LiteLLM: tokens beside counted pictures are theirs, unless the details have the text's.
    image_tokens = _first(details, "image_tokens") - cache.read_image
    if _first(details, "image_count"):
        image_tokens = max(image_tokens, prompt - _first(details, "text_tokens"))
    read = _Remainder(left.take(cache.read))
    kinds = {
        "cached_audio_input_tokens": read.take(cache.read_audio),
        "cached_image_input_tokens": read.take(cache.read_image),
        "explicit_cached_input_tokens": read.take(cache.is_explicit * read.tokens),
        "cached_input_tokens": read.tokens,
        "cache_write_12h_tokens": left.take(cache.written_12h),
        "cache_write_1h_tokens": left.take(cache.written_1h),
        "cache_write_tokens": left.take(cache.written),
        # The details count the cached tokens of a kind, too.
        "audio_input_tokens": left.take(_first(details, "audio_tokens") - cache.read_audio),
        "image_input_tokens": left.take(image_tokens),
        "video_input_tokens": left.take(_first(details, "video_tokens")),
    }
    return {"text_input_tokens": left.tokens, **kinds}


def _output_kinds(output: int, reasoning: int, details: Mapping[str, Any]) -> dict[str, int]:
    left = _Remainder(output)
    kinds = {
        "audio_output_tokens": left.take(_first(details, "audio_tokens")),
        "image_output_tokens": left.take(_first(details, "image_tokens")),
        "video_output_tokens": left.take(_first(details, "video_tokens")),
        "reasoning_tokens": left.take(reasoning),
    }
    return {"text_output_tokens": left.tokens, **kinds}


class _Remainder:
    """Tokens that no kind has taken yet."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def take(self, tokens: int) -> int:
        """Take tokens, as many as there are."""
        if tokens <= 0:
            return 0
        taken = min(tokens, self.tokens)
        self.tokens -= taken
        return taken


def _web_searches(usage: Mapping[str, Any], prompt_details: Mapping[str, Any]) -> int:
    return (
        _first(_details(usage, "server_tool_use"), "web_search_requests")
        or _first(prompt_details, "web_search_requests")
        or _first(_details(usage, "server_side_tool_usage_details"), "web_search_calls")
    )


def _surcharges(source: Mapping[str, Any]) -> tuple[str, ...]:
    # https://docs.claude.com/en/api/messages: a request has both fields too.
    names = (source.get("inference_geo"), source.get("speed"))
    return tuple([name.lower() for name in names if isinstance(name, str) and name])


def asked_surcharges(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the surcharges that a request may cost by its provider's own parameters.

    A request that names no region is served in that of the account, at most in the
    dearest: https://platform.claude.com/docs/en/build-with-claude/data-residency
    """
    return _surcharges({"inference_geo": _DEAREST_REGION, **parameters})


_NO_DETAILS: Mapping[str, Any] = {}


def _details(source: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the first of these fields that is an object."""
    for name in names:
        if isinstance(value := source.get(name), dict):
            return value
    return _NO_DETAILS


def _first(source: Mapping[str, Any], *names: str) -> int:
    """Return the first of these fields that is a positive count; 0 if none is."""
    for name in names:
        if (value := source.get(name)) and (count := _count(value)):
            return count
    return 0


def _count(value: object) -> int:
    if type(value) is int:
        return value if 0 < value <= MAX_TOKENS else 0
    if isinstance(value, float) and 0 < value <= MAX_TOKENS:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return 0
