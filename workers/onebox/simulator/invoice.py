"""The provider's charges."""

from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.profile import Model
from workers.onebox.simulator.tokens import Usage

Kind = Literal["realtime", "batch"]
_BATCH_DISCOUNT = Decimal("0.5")


def cost(usage: Usage, prices: Model, kind: Kind) -> int:
    """The micro-dollars of one request, computed exactly and rounded half up once."""
    full_price = usage.input_tokens * prices.input + usage.output_tokens * prices.output
    charged = full_price * _BATCH_DISCOUNT if kind == "batch" else full_price
    return int(charged.quantize(Decimal(1), ROUND_HALF_UP))


class Invoice:
    """The sum of all charges, in integer micro-dollars."""

    def __init__(self) -> None:
        self._requests = 0
        self._by_model: Counter[str] = Counter()
        self._by_kind: Counter[str] = Counter(realtime=0, batch=0)

    def charge(self, model: str, usage: Usage, prices: Model, kind: Kind) -> None:
        """Add the charge of one answered request."""
        amount = cost(usage, prices, kind)
        self._requests += 1
        self._by_model[model] += amount
        self._by_kind[kind] += amount

    def as_json(self) -> JsonObject:
        """`total`, `by_model`, `by_kind` (micro-dollars) and the number of `requests` charged."""
        return {
            "total": self._by_kind.total(),
            "by_model": dict(self._by_model),
            "by_kind": dict(self._by_kind),
            "requests": self._requests,
        }
