"""The error tree: documented, complete, and the same after a JSON round trip."""

import inspect
import re

import pytest
from celery import Celery

import primarch_fleet
from primarch_fleet import errors
from primarch_fleet.errors import FleetError

TREE = [
    kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, FleetError)
]


@pytest.mark.parametrize("kind", TREE)
def test_an_error_travels_through_celery_as_itself(kind: type[FleetError]) -> None:
    backend = Celery(set_as_current=False, backend="cache+memory://").backend
    copy = backend.exception_to_python(backend.prepare_exception(kind("what to do"), "json"))
    assert type(copy) is kind
    assert str(copy) == "what to do"


@pytest.mark.parametrize("kind", TREE)
def test_the_docstring_is_the_message(kind: type[FleetError]) -> None:
    assert str(kind()) == (kind.__doc__ or "").splitlines()[0]


def test_codes_are_unique_and_derived_from_the_class_names() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert errors.ContextWindowExceeded.code == "context_window_exceeded"


@pytest.mark.parametrize("kind", TREE)
def test_each_error_is_exported_and_says_whether_to_retry(kind: type[FleetError]) -> None:
    assert getattr(primarch_fleet, kind.__name__) is kind
    assert kind.__name__ in primarch_fleet.__all__
    error = kind("what to do")
    assert isinstance(error.code, str)
    assert error.retryable in (True, False)
    assert error.retry_after is None or (error.retryable and error.retry_after > 0)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in TREE if kind is not FleetError)
