"""Decides which requests go wrong."""

from collections import Counter
from collections.abc import Sequence

from workers.onebox.simulator.chance import chance
from workers.onebox.simulator.error import ApiError
from workers.onebox.simulator.profile import Endpoint, Fault, Scope


class Faults:
    """Applies an ordered list of rules, counting for each what it has met and struck.

    Chance depends on the seed, the rule, the body and how often that body has come, so a retry is
    a new throw and the order in which requests arrive does not matter.
    """

    def __init__(self, rules: Sequence[Fault], seed: int) -> None:
        self._rules = rules
        self._seed = seed
        self._met: Counter[int] = Counter()
        self._struck: Counter[int] = Counter()
        self._seen: Counter[tuple[int, int]] = Counter()

    def pick(
        self, scope: Scope, endpoint: Endpoint, model: str | None, body: bytes
    ) -> Fault | None:
        """The first rule that strikes this request, if any does."""
        for number, rule in enumerate(self._rules):
            if _meets(rule, scope, endpoint, model, body) and self._strikes(number, rule, body):
                return rule
        return None

    def _strikes(self, number: int, rule: Fault, body: bytes) -> bool:
        self._met[number] += 1
        met = self._met[number]
        strikes = (
            (rule.first is None or met <= rule.first)
            and (rule.every is None or met % rule.every == 0)
            and (rule.times is None or self._struck[number] < rule.times)
            and (rule.probability is None or self._throw(number, body) < rule.probability)
        )
        self._struck[number] += strikes
        return strikes

    def _throw(self, number: int, body: bytes) -> float:
        key = (number, hash(body))
        self._seen[key] += 1
        return chance(self._seed, number, body, self._seen[key])


def refusal(fault: Fault, status: int) -> ApiError:
    """What a struck request is told."""
    code = fault.code or ("rate_limit_exceeded" if status == 429 else None)
    return ApiError(status, fault.message, code=code, retry_after=fault.retry_after)


def _meets(rule: Fault, scope: Scope, endpoint: Endpoint, model: str | None, body: bytes) -> bool:
    return (
        rule.scope == scope
        and rule.endpoint in (None, endpoint)
        and rule.model in (None, model)
        and (rule.contains is None or rule.contains.encode() in body)
    )
