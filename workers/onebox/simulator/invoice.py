"""The provider's charges: what its console would show, from the usage of each answer.

The sums are written independently of the fleet's prices, so that tests can compare both.
"""

from collections import Counter, deque
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.profile import Model, Rates

Kind = Literal["realtime", "batch"]
Tokens = Mapping[str, int]
_BATCH_DISCOUNT = Decimal("0.5")
_MAX_CHARGES = 20_000
#: The price of a kind of tokens that has no price of its own is that of this kind.
_SAME_AS = {
    "cached_input": "input",
    "cache_write_5m": "input",
    "cache_write_1h": "cache_write_5m",
    "audio_input": "input",
    "image_input": "input",
    "audio_output": "output",
    "reasoning": "output",
}
_PROMPT = frozenset({"input", *_SAME_AS}) - {"audio_output", "reasoning"}


def tokens(usage: JsonObject) -> Tokens:
    """The tokens of a usage object by the kinds of `Rates`, each token in one kind.

    Understands the objects of OpenAI's chat completions, embeddings and responses, and Anthropic's.
    """
    if "prompt_tokens" in usage:
        return _openai(usage, "prompt_tokens", "completion_tokens")
    if "input_tokens_details" in usage or "total_tokens" in usage:
        return _openai(usage, "input_tokens", "output_tokens")
    return _anthropic(usage)


def picodollars(counts: Tokens, prices: Model, kind: Kind, tier: str | None = None) -> Decimal:
    """The exact price of one request, in pico-dollars (10^-12 dollars).

    Args:
        counts: Its tokens by kind.
        prices: The model's.
        kind: Whether a batch answered it.
        tier: The service tier that served it.
    """
    rates: Rates = prices.tiers.get(tier or "", prices)
    discount = Decimal(1)
    if kind == "batch":
        rates, discount = prices.batch or prices, Decimal(1) if prices.batch else _BATCH_DISCOUNT
    prompt = sum(counts.get(name, 0) for name in _PROMPT)
    for above, step in sorted(rates.steps.items()):
        rates = step if prompt > above else rates
    total = sum((_price(rates, name) * number for name, number in counts.items()), Decimal(0))
    return total * discount * 1_000_000


class Invoice:
    """The sums of all charges; each charge is rounded half up once, to nano-dollars.

    The sums in micro-dollars add charges that were rounded to micro-dollars.
    """

    def __init__(self) -> None:
        self._requests = 0
        self._tokens: Counter[str] = Counter()
        self._nano = _Sums()
        self._micro = _Sums()
        #: The nano-dollars of the newest answers by id; an embedding has none.
        self.charges: deque[tuple[str | None, int]] = deque(maxlen=_MAX_CHARGES)

    def charge(
        self, body: JsonObject, usage: JsonObject, model: str, prices: Model, kind: Kind
    ) -> None:
        """Add the charge of one answer, by this usage and the tier that the body says."""
        counts = tokens(usage)
        tier = body.get("service_tier") or usage.get("service_tier")
        exact = picodollars(counts, prices, kind, tier)
        nano = _rounded(exact / 1_000)
        self._requests += 1
        self._tokens.update(counts)
        self._nano.add(model, kind, nano)
        self._micro.add(model, kind, _rounded(exact / 1_000_000))
        self.charges.append((body.get("id"), nano))

    def as_json(self) -> JsonObject:
        """The charges.

        `total_nanousd`, `by_model_nanousd` and `by_kind_nanousd`; `total`, `by_model` and `by_kind`
        in micro-dollars; the number of `requests` charged, and their `tokens` by kind.
        """
        return {
            **self._micro.as_json(""),
            **self._nano.as_json("_nanousd"),
            "requests": self._requests,
            "tokens": {name: number for name, number in self._tokens.items() if number},
        }


class _Sums:
    def __init__(self) -> None:
        self._by_model: Counter[str] = Counter()
        self._by_kind: Counter[str] = Counter(realtime=0, batch=0)

    def add(self, model: str, kind: Kind, amount: int) -> None:
        self._by_model[model] += amount
        self._by_kind[kind] += amount

    def as_json(self, suffix: str) -> JsonObject:
        return {
            f"total{suffix}": self._by_kind.total(),
            f"by_model{suffix}": dict(self._by_model),
            f"by_kind{suffix}": dict(self._by_kind),
        }


def _price(rates: Rates, name: str) -> Decimal:
    price: Decimal | None = getattr(rates, name)
    return _price(rates, _SAME_AS[name]) if price is None else price


def _rounded(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def _openai(usage: JsonObject, prompt_name: str, answer_name: str) -> Tokens:
    prompt, answer = usage.get(prompt_name) or 0, usage.get(answer_name) or 0
    # Some providers count reasoning apart: it is in the total and not in the answer.
    answer = max(answer, (usage.get("total_tokens") or 0) - prompt)
    inside = usage.get(f"{prompt_name}_details") or {}
    outside = usage.get(f"{answer_name}_details") or {}
    for_an_hour = inside.get("cache_write_1h_tokens") or 0
    parts: dict[str, Any] = {
        "cached_input": inside.get("cached_tokens"),
        "cache_write_5m": (inside.get("cache_write_tokens") or 0) - for_an_hour,
        "cache_write_1h": for_an_hour,
        "audio_input": inside.get("audio_tokens"),
        "image_input": inside.get("image_tokens"),
    }
    answers = {
        "audio_output": outside.get("audio_tokens"),
        "reasoning": outside.get("reasoning_tokens"),
    }
    counts = {name: number or 0 for name, number in (parts | answers).items()}
    counts["input"] = prompt - sum(counts[name] for name in parts)
    counts["output"] = answer - sum(counts[name] for name in answers)
    return counts


def _anthropic(usage: JsonObject) -> Tokens:
    # https://docs.claude.com/en/api/messages: `input_tokens` has neither reads nor writes.
    written = usage.get("cache_creation_input_tokens") or 0
    for_an_hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    return {
        "input": usage.get("input_tokens") or 0,
        "cached_input": usage.get("cache_read_input_tokens") or 0,
        "cache_write_5m": written - for_an_hour,
        "cache_write_1h": for_an_hour,
        "output": usage.get("output_tokens") or 0,
        "web_search": (usage.get("server_tool_use") or {}).get("web_search_requests") or 0,
    }
