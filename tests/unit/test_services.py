"""The services of a process: switched off before a worker starts, replaceable within a block."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from primarch_fleet.errors import InvalidRequest
from tasks import services
from tasks.deferral import deferral_store
from tasks.services import Services


@dataclass(frozen=True, kw_only=True)
class ExtendedServices(Services):
    """As the batch lane's."""

    pipeline: str


def test_all_services_are_switched_off_before_a_worker_starts() -> None:
    assert services.current() == Services()


def test_override_replaces_services_within_the_block_and_restores_them_after_an_error() -> None:
    before, backend = services.current(), object()
    with pytest.raises(ZeroDivisionError), services.override(backends={"local": backend}) as inner:
        assert services.current() is inner
        assert inner.backends == {"local": backend}
        assert inner.accountant is before.accountant
        raise ZeroDivisionError
    assert services.current() is before


def test_override_keeps_the_services_that_a_lane_adds() -> None:
    before = services.current()
    services.install(ExtendedServices(pipeline="pipeline"))
    try:
        with services.override(backends={}) as inner:
            assert isinstance(inner, ExtendedServices)
            assert inner.pipeline == "pipeline"
    finally:
        services.install(before)


def test_a_process_without_a_deferral_store_refuses_to_park() -> None:
    wrong_queue = pytest.raises(InvalidRequest, match="send the task to the queue batch")
    with services.override(deferral_store=None), wrong_queue:
        deferral_store()
