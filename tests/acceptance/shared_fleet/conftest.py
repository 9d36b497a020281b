"""One fleet for all tests of this folder, which leave it as it was.

Its start takes longer than most of these tests. With pytest-xdist each process has one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from tests.acceptance.conftest import Up, running


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The fleet; it ends with the last of these tests, since idle workers cost time too."""
    with running(tmp_path_factory.mktemp("up") / "data") as up:
        yield up


@pytest.fixture
def plain_app(up: Up) -> Iterator[Celery]:
    """A producer's Celery app without our package; its result connections are closed at the end."""
    with Celery(broker=up.url, backend=up.url, set_as_current=False) as app:
        yield app
        backend: Any = app.backend
        backend.result_consumer.stop()
        backend.client.connection_pool.disconnect()
