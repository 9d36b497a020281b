"""How fast a worker says that it is."""

import pytest

from workers.observability.throughput import WINDOW_SPANS, Throughput


@pytest.mark.parametrize(
    ("places", "held", "rate"),
    [
        (1, [2.0], 0.5),
        (100, [2.0], 50.0),
        (4, [1.0, 3.0], 2.0),
        (4, [0.5] * 3 + [2.5], 4.0),
    ],
)
def test_the_rate_is_the_places_by_the_mean_time_that_one_is_held(
    places: int, held: list[float], rate: float
) -> None:
    throughput = Throughput(lambda: places)
    for seconds in held:
        throughput.add(seconds)
    assert throughput.measure() == rate


def test_a_worker_of_which_nothing_is_known_says_nothing() -> None:
    assert Throughput(lambda: 10).measure() is None


def test_a_rate_is_of_the_last_spans_alone_and_of_the_places_as_they_are() -> None:
    places = [1]
    throughput = Throughput(lambda: places[0], lambda: ["stuck"])
    throughput.add(4.0)
    assert throughput.measure() == 0.25
    throughput.add(2.0)
    assert [throughput.measure() for _ in range(WINDOW_SPANS - 1)] == [1 / 3] * (WINDOW_SPANS - 1)
    places[0] = 3
    assert throughput.measure() == 1.5
    assert throughput.measure() is None


def test_an_idle_worker_is_as_fast_as_it_was() -> None:
    throughput = Throughput(lambda: 1, lambda: [])
    throughput.add(4.0)
    assert [throughput.measure() for _ in range(2 * WINDOW_SPANS)] == [0.25] * 2 * WINDOW_SPANS
    for _ in range(WINDOW_SPANS):
        throughput.add(2.0)
        throughput.measure()
    assert throughput.measure() == 0.5
