"""The throughput that a worker reports."""

import pytest

from workers.observability.throughput import WINDOW_SPANS, Throughput


@pytest.mark.parametrize(
    ("slots", "held", "rate"),
    [
        (1, [2.0], 0.5),
        (100, [2.0], 50.0),
        (4, [1.0, 3.0], 2.0),
        (4, [0.5] * 3 + [2.5], 4.0),
    ],
)
def test_the_throughput_is_slots_divided_by_the_mean_time_that_a_slot_is_held(
    slots: int, held: list[float], rate: float
) -> None:
    throughput = Throughput(lambda: slots)
    for seconds in held:
        throughput.add(seconds)
    assert throughput.measure() == rate


def test_the_throughput_is_unknown_before_a_message_completed() -> None:
    assert Throughput(lambda: 10).measure() is None


def test_the_throughput_uses_only_the_last_spans_and_the_current_slots() -> None:
    slots = [1]
    throughput = Throughput(lambda: slots[0], lambda: ["stuck"])
    throughput.add(4.0)
    assert throughput.measure() == 0.25
    throughput.add(2.0)
    assert [throughput.measure() for _ in range(WINDOW_SPANS - 1)] == [1 / 3] * (WINDOW_SPANS - 1)
    slots[0] = 3
    assert throughput.measure() == 1.5
    assert throughput.measure() is None


def test_an_idle_worker_keeps_its_throughput() -> None:
    throughput = Throughput(lambda: 1, lambda: [])
    throughput.add(4.0)
    assert [throughput.measure() for _ in range(2 * WINDOW_SPANS)] == [0.25] * 2 * WINDOW_SPANS
    for _ in range(WINDOW_SPANS):
        throughput.add(2.0)
        throughput.measure()
    assert throughput.measure() == 0.5
