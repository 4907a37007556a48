from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from etl_server.testing import Driver, Target

from .upper_server import UpperServer


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A running target with the buckets `src` and `dst`, both empty."""
    (tmp_path / "src").mkdir()
    with Target({"src": tmp_path / "src", "dst": tmp_path / "dst"}) as running:
        yield running


@pytest.fixture
async def server(target: Target) -> AsyncIterator[UpperServer]:
    async with UpperServer(target.url) as running:
        yield running


@pytest.fixture
async def driver(server: UpperServer, target: Target) -> AsyncIterator[Driver]:
    async with Driver(server.url, target) as running:
        yield running
