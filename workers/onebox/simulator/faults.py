"""Decides which requests fail, by the fault rules of the profile."""

from collections import Counter
from collections.abc import Sequence

from workers.onebox.simulator.errors import ApiError
from workers.onebox.simulator.profile import Endpoint, Fault, Scope
from workers.onebox.simulator.seeded_random import seeded_random


class Faults:
    """Applies an ordered list of rules, and counts matches and hits of each.

    A rule matches a request by its conditions, and hits it if its counters and its probability say
    so. A random number depends on the seed, the rule, the body and how often that body has arrived,
    so each retry gets a new one, and the order in which requests arrive does not matter.
    """

    def __init__(self, rules: Sequence[Fault], seed: int) -> None:
        self._rules = rules
        self._seed = seed
        self._matches: Counter[int] = Counter()
        self._hits: Counter[int] = Counter()
        self._arrivals: Counter[tuple[int, int]] = Counter()

    def pick(
        self, scope: Scope, endpoint: Endpoint, model: str | None, body: bytes
    ) -> Fault | None:
        """Return the first rule that hits this request, if any."""
        for number, rule in enumerate(self._rules):
            if _matches(rule, scope, endpoint, model, body) and self._hit(number, rule, body):
                return rule
        return None

    def _hit(self, number: int, rule: Fault, body: bytes) -> bool:
        self._matches[number] += 1
        matches = self._matches[number]
        hit = (
            (rule.first is None or matches <= rule.first)
            and (rule.every is None or matches % rule.every == 0)
            and (rule.times is None or self._hits[number] < rule.times)
            and (rule.probability is None or self._random(number, body) < rule.probability)
        )
        if hit:
            self._hits[number] += 1
        return hit

    def _random(self, number: int, body: bytes) -> float:
        key = (number, hash(body))
        self._arrivals[key] += 1
        return seeded_random(self._seed, number, body, self._arrivals[key])


def error_of(fault: Fault, status: int) -> ApiError:
    """The error response of a fault."""
    code = fault.code or ("rate_limit_exceeded" if status == 429 else None)
    return ApiError(status, fault.message, code=code, retry_after=fault.retry_after)


def _matches(rule: Fault, scope: Scope, endpoint: Endpoint, model: str | None, body: bytes) -> bool:
    return (
        rule.scope == scope
        and rule.endpoint in (None, endpoint)
        and rule.model in (None, model)
        and (rule.contains is None or rule.contains.encode() in body)
    )
