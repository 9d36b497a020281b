"""Rules: which requests they match, and which of those they hit."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.seeded_random import seeded_random

Endpoint = Literal[
    "chat.completions",
    "embeddings",
    "responses",
    "moderations",
    "models.list",
    "files.create",
    "files.list",
    "files.retrieve",
    "files.content",
    "files.delete",
    "batches.create",
    "batches.list",
    "batches.retrieve",
    "batches.cancel",
    "other",
]
Scope = Literal["call", "line", "validation"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the settings; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(Section):
    """Which requests a rule matches, and which of those it hits.

    Matching: `scope`, `endpoint`, `path`, `model`, `contains` and `where` must all hold; an absent
    field always holds. `contains` is searched verbatim in the body, in the uploaded file, or in the
    path and query of a call without a body. `where` has values of the JSON body, at any depth:
    {"metadata": {"row": "7"}}. `path` is the path of a call, with a final * for any rest.

    Hitting: of the requests that match, the `first` ones, each `every`-th, with a seeded
    `probability`, and at most so many `times`; all given fields must hold.
    """

    scope: Scope = "call"
    endpoint: Endpoint | None = None
    path: str | None = None
    model: str | None = None
    contains: str | None = None
    where: JsonObject | None = None
    first: PositiveInt | None = None
    every: PositiveInt | None = None
    times: PositiveInt | None = None
    probability: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A request, or a line of a batch, that rules are compared with.

    `raw` is the text that `Rule.contains` searches; `body` reads its JSON object.
    """

    scope: Scope
    endpoint: Endpoint
    model: str | None
    raw: bytes
    body: Callable[[], JsonObject]
    path: str = ""


_R = TypeVar("_R", bound=Rule)


class Rules(Generic[_R]):
    """Applies an ordered list of rules, and counts matches and hits of each.

    A random number depends on the seed, the rule, the body and how often that body has arrived, so
    each retry gets a new one, and the order in which requests arrive does not matter.
    """

    def __init__(self, rules: Iterable[_R], seed: int) -> None:
        self._rules = list(rules)
        self._seed = seed
        self._matches: Counter[int] = Counter()
        self._hits: Counter[int] = Counter()
        self._arrivals: Counter[tuple[int, int]] = Counter()

    def add(self, rules: Iterable[_R]) -> None:
        """Append rules; the counters of the others stay."""
        self._rules += rules

    def pick(self, subject: Subject) -> _R | None:
        """Return the first rule that hits this request, if any."""
        for number, rule in enumerate(self._rules):
            if _matches(rule, subject) and self._hit(number, rule, subject.raw):
                return rule
        return None

    def _hit(self, number: int, rule: _R, body: bytes) -> bool:
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


def _matches(rule: Rule, subject: Subject) -> bool:
    return (
        rule.scope == subject.scope
        and rule.endpoint in (None, subject.endpoint)
        and rule.model in (None, subject.model)
        and (rule.path is None or _is_path(subject.path, rule.path))
        and (rule.contains is None or rule.contains.encode() in subject.raw)
        and (rule.where is None or _has(subject.body(), rule.where))
    )


def _is_path(path: str, wanted: str) -> bool:
    if wanted.endswith("*"):
        return path.startswith(wanted[:-1])
    return path == wanted


def _has(value: Any, wanted: Any) -> bool:
    """Whether `value` has the wanted keys with the wanted values, at any depth."""
    if isinstance(wanted, dict) and isinstance(value, dict):
        return all(name in value and _has(value[name], part) for name, part in wanted.items())
    return bool(value == wanted)
