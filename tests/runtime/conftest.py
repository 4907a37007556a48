"""What the tests of the data path share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
import uvloop

from etl_server.testing import Driver, Target
from tests.conftest import Live, Serve
from tests.storage.conftest import bucket, s3, s3_proxy, s3_server

__all__ = ["bucket", "s3", "s3_proxy", "s3_server"]  # fixtures of another folder, which are used here too

Drive = Callable[[Live], Awaitable[Driver]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
async def drive(serve: Serve, target: Target) -> AsyncIterator[Drive]:
    """Drivers that send objects of `target` to servers: `await drive(live)`."""
    async with AsyncExitStack() as drivers:

        async def enter(live: Live) -> Driver:
            return await drivers.enter_async_context(Driver(live.url, target))

        yield enter


@pytest.fixture
def backoffs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of a second and more are not waited for, but listed here, in seconds."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def skip(delay: float, result: object = None) -> object:
        if delay >= 1:
            waits.append(delay)
            delay = 0
        return await sleep(delay, result)

    monkeypatch.setattr(asyncio, "sleep", skip)
    return waits


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """The outbound client runs on uvloop where we serve, and on asyncio's own loop under other ASGI servers."""
    if item.path.name == "test_outbound.py":
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
