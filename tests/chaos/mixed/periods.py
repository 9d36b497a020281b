"""Periods of time: sorted, and none of them overlap."""

from __future__ import annotations

from collections.abc import Iterable

Period = tuple[float, float]


def union(periods: Iterable[Period]) -> list[Period]:
    """Return what any of some periods covers; they may overlap, and be in any order."""
    found: list[Period] = []
    for start, end in sorted(period for period in periods if period[0] < period[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def minus(periods: Iterable[Period], holes: Iterable[Period]) -> list[Period]:
    """Return what some periods cover and others do not."""
    left = union(periods)
    for first, last in union(holes):
        parts = [((a, min(b, first)), (max(a, last), b)) for a, b in left]
        left = [part for pair in parts for part in pair if part[0] < part[1]]
    return left


def seconds_within(periods: Iterable[Period], start: float, end: float) -> float:
    """Return how much of the time between two moments some periods cover."""
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in periods)
