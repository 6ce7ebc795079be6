from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.server import Server


@pytest.fixture(scope="session")
def server(private_and_offline: None) -> Iterator[Server]:
    started = Server()
    yield started
    started.close()
