"""What every test may rely on: no FLEET_* or CELERY_* variable of its user reaches it."""

import gc
import os
from collections.abc import Iterator

import pytest

# Before anything imports it: its assertions say what they found, as those of tests do.
pytest.register_assert_rewrite("tests.support.batch_fixture")

for _name in [name for name in os.environ if name.startswith(("FLEET_", "OPENAI_", "CELERY_"))]:
    if _name != "FLEET_TEST_VLLM_MODEL":
        del os.environ[_name]


@pytest.fixture(scope="module", autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Report what a file has left open in this file, not where Python happens to notice it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of every `async def` test."""
    return "asyncio"
