"""What a call returned decides whether it is awaited, whatever was called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from etl_server.awaiting import maybe_await
from tests.storage.s3_servers import aio_s3_client, moto_server, s3_client


def plain() -> str:
    return "done"


async def coroutine() -> str:
    return "done"


def generated() -> Awaitable[str]:
    """A plain function that hands out a coroutine: so are the methods of generated clients."""
    return coroutine()


class Methods:
    def plain(self) -> str:
        return "done"

    async def coroutine(self) -> str:
        return "done"

    @staticmethod
    async def static() -> str:
        return "done"


class Callables:
    def __call__(self) -> str:
        return "done"


class AsyncCallables:
    async def __call__(self) -> str:
        return "done"


class Awaitables:
    """Is awaited, and no coroutine."""

    def __await__(self) -> Generator[Any, None, str]:
        return coroutine().__await__()


async def with_argument(value: str) -> str:
    return value


@pytest.mark.parametrize(
    "call",
    [
        plain,
        coroutine,
        generated,
        lambda: coroutine(),
        Methods().plain,
        Methods().coroutine,
        Methods.static,
        Callables(),
        AsyncCallables(),
        Awaitables,
        functools.partial(plain),
        functools.partial(with_argument, "done"),
        functools.partial(functools.partial(with_argument), "done"),
        functools.partial(AsyncCallables()),
    ],
)
async def test_a_call_gives_its_result_whatever_it_is_made_by(call: Callable[[], Any]) -> None:
    assert await maybe_await(call()) == "done"


async def test_what_the_awaited_raises_is_raised() -> None:
    async def fails() -> str:
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        _ = await maybe_await(fails())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with moto_server() as url:
        yield url


async def test_the_methods_of_boto3_and_aiobotocore_give_their_answers(url: str) -> None:
    async with aio_s3_client(url) as aio_client:
        # The reason why nobody is asked that: it says no to a method that is to be awaited.
        assert not inspect.iscoroutinefunction(aio_client.list_buckets)
        for client in (s3_client(url), aio_client):
            answer: Any = await maybe_await(client.list_buckets())
            assert answer["Owner"]
