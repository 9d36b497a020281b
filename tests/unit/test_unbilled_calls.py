"""Errors and their causes."""

import workers.realtime  # noqa: F401 - LiteLLM's settings, before its import
from workers.realtime.finish_reasons import MappedReason, NativeReasons
from workers.realtime.unbilled_calls import causes


def test_each_cause_of_an_error_comes_once_even_if_an_error_is_among_its_own_causes() -> None:
    first, second, third = ValueError("1"), ValueError("2"), ValueError("3")
    first.__cause__, second.__context__, third.__cause__ = second, third, first
    assert list(causes(first)) == [first, second, third]
    assert list(causes(None)) == []


def test_a_failed_finish_reason_that_is_mapped_twice_stays_failed() -> None:
    table = NativeReasons({"MALFORMED_FUNCTION_CALL": "stop", "STOP": "stop"})
    once = table.get("MALFORMED_FUNCTION_CALL")
    again = table.get(once)
    assert isinstance(again, MappedReason)
    assert (again, again.native) == ("stop", "MALFORMED_FUNCTION_CALL")
    assert table.get(table.get("STOP")) == "stop"
