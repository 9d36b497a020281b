"""What events show of a request."""

from typing import Any

import pytest

from primarch_fleet.errors import RateLimited
from primarch_fleet.protocol import HIDDEN_ARGUMENTS, error_value
from tasks import event_text, services
from tests.support.realtime_fixture import CONFIG


@pytest.mark.parametrize("tenant", [{"tenant_id": "acme"}, {}])
def test_arguments_are_the_names_of_model_tenant_and_lane(tenant: dict[str, str]) -> None:
    catalogue = CONFIG.catalogue()
    model = next(iter(catalogue.models))
    body = {"model": model, "messages": ["a prompt"], **tenant}
    with services.override(catalogue=catalogue):
        text = event_text.of_arguments("realtime.complete", [body])
    assert text == f"model={model} tenant={tenant.get('tenant_id', 'default')} lane=realtime"


@pytest.mark.parametrize("args", [None, [], ["a prompt"], [["a prompt"]], [7], 7])
def test_arguments_that_are_no_request_stay_hidden(args: Any) -> None:
    assert event_text.of_arguments("batch.complete", args) == HIDDEN_ARGUMENTS
    assert event_text.of_arguments("batch.complete", (), args) == HIDDEN_ARGUMENTS


def test_a_request_may_be_a_named_argument() -> None:
    text = event_text.of_arguments("batch.complete", [], {"request": {"tenant_id": "acme"}})
    assert text == "model=other tenant=acme lane=batch"


def test_arguments_of_other_tasks_stay_hidden() -> None:
    assert event_text.of_arguments("scheduler.cancel", [{"model": "m"}]) == HIDDEN_ARGUMENTS


def test_an_error_that_is_returned_is_shown_by_its_code() -> None:
    assert event_text.of_result(error_value(RateLimited("a prompt"))) == "error=rate_limited"


@pytest.mark.parametrize("value", [None, "an answer", ["an answer"], {"an": "answer"}])
def test_other_results_stay_hidden(value: Any) -> None:
    assert event_text.of_result(value) == HIDDEN_ARGUMENTS


def test_a_long_name_is_cut_and_stays_on_one_line() -> None:
    body = {"model": 7, "tenant_id": "a\nb" * 100}
    text = event_text.of_arguments("local.embed", [body])
    assert text == f"model=other tenant={('a_b' * 100)[:64]} lane=local"
