"""The server's time on a host whose clock differs from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from primarch_fleet.server_clock import ServerClock
from tests.support.clock import Clock

SERVER = 1_000_000.25


def clock_of(host: Clock, wall: Clock) -> ServerClock:
    clock = ServerClock(host, wall)
    clock.measure(lambda: (1_000_000, 250_000))
    return clock


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_before_a_measurement_it_is_the_clock_of_the_host() -> None:
    assert ServerClock(wall=lambda: 7.0).timestamp() == 7.0


@pytest.mark.parametrize("ahead", [-300.0, 0.0, 300.0])
def test_it_follows_the_server_however_the_clock_of_the_host_is_set(ahead: float) -> None:
    monotonic, wall = Clock(), Clock()
    wall.now = SERVER + ahead
    clock = clock_of(monotonic, wall)
    monotonic.now += 5
    wall.now -= 1000
    assert clock.timestamp() == pytest.approx(SERVER + 5)
    assert clock.now() == at(SERVER + 5)


@pytest.mark.parametrize("ahead", [-300.0, -0.9, 0.9, 300.0])
def test_a_deadline_of_the_host_keeps_its_distance_from_now(ahead: float) -> None:
    wall = Clock()
    wall.now = SERVER + ahead
    clock = clock_of(Clock(), wall)
    translated = clock.from_host(at(wall.now + 60)) - clock.now()
    assert abs(translated - timedelta(seconds=60)) <= timedelta(seconds=0.9)
    assert (clock.from_host(at(9)) == at(9)) == (abs(ahead) < 1)
    assert clock.to_host(clock.from_host(at(9))) == at(9)


def test_a_slow_reply_does_not_replace_a_measurement() -> None:
    monotonic = Clock()
    clock = clock_of(monotonic, Clock())

    def slow() -> tuple[int, int]:
        monotonic.now += 30
        return 1_000_000, 250_000

    clock.measure(slow)
    assert clock.timestamp() == pytest.approx(SERVER + 30)
