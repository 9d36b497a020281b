"""What every test may rely on: no FLEET_* or CELERY_* variable of its user reaches it."""

import gc
import os
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# An example takes longer while other processes of pytest have the processors.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Before anything imports it: its assertions say what they found, as those of tests do.
pytest.register_assert_rewrite("tests.support.batch_fixture")

for _name in [name for name in os.environ if name.startswith(("FLEET_", "OPENAI_", "CELERY_"))]:
    if _name not in ("FLEET_TEST_VLLM_MODEL", "FLEET_TEST_WORKER_PYTHON"):
        del os.environ[_name]


# Imports leave no garbage: to look for it while LiteLLM is imported takes a third of that time.
gc.disable()


def pytest_collection_finish() -> None:
    """Exclude the tests and what they import from garbage collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Collect what a file has left open before the next file, whose tests it would fail.

    Without a warning: it depends on chance whether Python finalizes a connection first, which
    closes its socket, or the socket, which warns.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.freeze()


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
