"""Two sandboxes, so that two processes can be tested at once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.sandbox import Sandbox, open_sandbox
from tests.support.redis_server import DURABLE, redis_server
from tests.support.server_folder import server_folder


@pytest.fixture(scope="session")
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sandbox]]:
    folder = tmp_path_factory.mktemp("chaos")
    with ExitStack() as stack:
        path, options = stack.enter_context(server_folder())
        server = stack.enter_context(redis_server(path, DURABLE | options))
        yield [
            stack.enter_context(
                open_sandbox(f"redis://127.0.0.1:{server.port}/{number}", folder / str(number), env)
            )
            for number, env in enumerate([dict(os.environ)] * 2)
        ]
