"""The forty faults of a batch lane, each as a test named after it."""

import pytest

pytest.register_assert_rewrite("tests.integration.batch_bench")

from tests.integration.batch_bench import fleet_app, open_bench  # noqa: E402

__all__ = ["anyio_backend", "fleet_app", "open_bench"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
