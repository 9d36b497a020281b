"""The choice among deployments: health, length, region, and weights that follow measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest
from workers.realtime.deployment_choice import MIN_CALLS, DeploymentChoice
from workers.realtime.measurements import Calls

IDS = ["a", "b", "c"]


@dataclass
class Observations:
    """What the workers know of the deployments."""

    calls: dict[str, Calls] = field(default_factory=dict)
    unhealthy: set[str] = field(default_factory=set)
    probe_seconds: dict[str, float] = field(default_factory=dict)


def fleet(fields: dict[str, dict[str, Any]] | None = None, **routing: Any) -> FleetConfig:
    """Three deployments of the model `big`, with these fields."""
    defaults = {"model": "big", "upstream": "big", "provider": "p"}
    price = {"input": "2", "output": "8"}
    return FleetConfig.model_validate(
        {
            "providers": {"p": {"litellm_provider": "openai"}},
            "deployments": [
                {"id": id_, "price": price, **defaults, **(fields or {}).get(id_, {})}
                for id_ in IDS
            ],
            "routing": routing,
        }
    )


def chosen(
    fleet: FleetConfig, observed: Observations, text: str = "x", tried: set[str] | None = None
) -> dict[str, Any]:
    """The deployments that a call may go to, with their weights."""
    request = CompletionRequest(model="big", messages=[{"role": "user", "content": text}])
    listed = [{"model_info": {"id": id_}, "litellm_params": {"model": "x"}} for id_ in IDS]
    candidates = DeploymentChoice(fleet, observed).candidates(
        request, "big", listed, tried or set()
    )
    return {
        entry["model_info"]["id"]: entry["litellm_params"].get("weight") for entry in candidates
    }


def calls(seconds: float, failures: int = 0, count: int = 100) -> Calls:
    return Calls(count, failures, round(seconds * 1000 * (count - failures)))


TOO_FEW = calls(9, count=MIN_CALLS - 1)


def test_all_deployments_are_candidates_without_observations() -> None:
    assert list(chosen(fleet(), Observations())) == IDS


@pytest.mark.parametrize(
    ("unhealthy", "tried", "candidates"),
    [
        ({"a"}, set[str](), ["b", "c"]),
        ({"a"}, {"b"}, ["c"]),
        # A step leaves all deployments in rather than none.
        ({"a", "b", "c"}, set(), IDS),
        ({"c"}, {"a", "b"}, ["c"]),
        (set(), {"a", "b", "c"}, IDS),
    ],
)
def test_unhealthy_and_tried_deployments_are_avoided(
    unhealthy: set[str], tried: set[str], candidates: list[str]
) -> None:
    assert list(chosen(fleet(), Observations(unhealthy=unhealthy), tried=tried)) == candidates


def test_a_long_prompt_goes_only_to_deployments_that_take_it() -> None:
    lengths = {"a": {"context_length": 100}, "b": {"context_length": 10_000}, "c": {}}
    assert list(chosen(fleet(lengths), Observations(), "word " * 50)) == IDS
    assert list(chosen(fleet(lengths), Observations(), "word " * 500)) == ["b", "c"]
    short = {id_: {"context_length": 80 + i} for i, id_ in enumerate(IDS)}
    assert list(chosen(fleet(short), Observations(), "word " * 500)) == IDS


REGIONS = {"a": {"region": "eu"}, "b": {"region": "us"}, "c": {"region": "us"}}


def test_the_nearest_region_is_that_of_the_fastest_deployment() -> None:
    nearest = fleet(REGIONS, nearest_region=True)
    faster_us = Observations({"a": calls(2), "b": calls(3), "c": calls(1)})
    assert list(chosen(nearest, faster_us)) == ["b", "c"]
    assert list(chosen(nearest, faster_us, tried={"b", "c"})) == ["a"]
    assert list(chosen(nearest, Observations({"a": calls(1), "b": calls(3), "c": calls(2)}))) == [
        "a"
    ]


def test_a_region_without_calls_is_ordered_by_its_health_checks() -> None:
    checked = Observations(probe_seconds={"a": 0.1, "b": 0.02, "c": 0.3})
    assert list(chosen(fleet(REGIONS, nearest_region=True), checked)) == ["b", "c"]


def test_a_region_is_a_tag() -> None:
    assert [entry.id for entry in fleet(REGIONS).deployments_of("big", ["region:us"])] == ["b", "c"]


def weights(observed: Observations, fields: Any = None, **powers: float) -> list[float]:
    measured = {"latency": 0.0, "failures": 0.0, "price": 0.0} | powers
    found = chosen(fleet(fields, measured_weights=measured), observed)
    return [round(found[id_], 4) for id_ in IDS]


@pytest.mark.parametrize(
    ("observed", "powers", "expected"),
    [
        ({"a": calls(1), "b": calls(2), "c": calls(4)}, {"latency": 1}, [1, 0.5, 0.25]),
        ({"a": calls(1), "b": calls(2), "c": calls(4)}, {"latency": 2}, [1, 0.25, 0.0625]),
        # A deployment that is much slower is still measured.
        ({"a": calls(1), "b": calls(2), "c": calls(900)}, {"latency": 1}, [1, 0.5, 0.05]),
        # A deployment that is not measured counts as the fastest one, so that it is measured.
        ({"a": calls(1), "b": calls(2)}, {"latency": 1}, [1, 0.5, 1]),
        ({"a": calls(1), "b": calls(2), "c": TOO_FEW}, {"latency": 1}, [1, 0.5, 1]),
        ({"a": calls(1, 50), "b": calls(1)}, {"failures": 2}, [0.25, 1, 1]),
        ({"a": Calls(100, 100, 0), "b": calls(1)}, {"failures": 1}, [0.05, 1, 1]),
        ({"a": calls(1, 50), "b": calls(2)}, {"latency": 1, "failures": 1}, [0.5, 0.5, 1]),
    ],
)
def test_weights_follow_measured_latency_and_failures(
    observed: dict[str, Calls], powers: dict[str, float], expected: list[float]
) -> None:
    assert weights(Observations(observed), **powers) == expected


def test_weights_follow_prices_and_configured_weights() -> None:
    fields = {"b": {"price": {"input": "4", "output": "8"}}, "c": {"params": {"weight": 3}}}
    assert weights(Observations(), fields, price=1) == [1, 0.5, 3]
