"""Objects of S3 as an event loop reads them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from etl_server.errors import ObjectStoreError, ObjectStoreTransientError
from etl_server.runtime.eager import start_eagerly
from etl_server.storage import RetryPolicy
from etl_server.storage.s3_async import AsyncS3Object, AsyncS3Reader
from tests.helpers import eventually

from .s3_proxy import Exchange, Fault, Hold, S3Proxy, internal_error, redirect, reset, slow, throttle, truncate
from .s3_servers import RcloneServer, aio_session, set_credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 17)
QUICK = RetryPolicy(tries=3, first_wait=0.01)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch, s3_proxy: S3Proxy, bucket: str) -> AsyncIterator[AsyncS3Reader]:
    """A reader with a prefix in a new bucket, behind the proxy."""
    monkeypatch.setattr("etl_server.storage.s3_async.AioSession", lambda profile: aio_session())
    opened = AsyncS3Reader(bucket, "pre fix", endpoint_url=s3_proxy.url, policy=QUICK)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def key(s3: S3Client, bucket: str) -> str:
    """The name of an object, which has CONTENT."""
    s3.put_object(Bucket=bucket, Key="pre fix/a b/ü", Body=CONTENT)
    return "a b/ü"


async def rest_of(stored: AsyncS3Object, size: int = 1 << 16) -> bytes:
    pieces = []
    while piece := await stored.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [1, 1000, 1 << 16, len(CONTENT) + 1])
async def test_an_object_is_read_from_its_beginning_to_its_end(
    reader: AsyncS3Reader, s3: S3Client, bucket: str, size: int
) -> None:
    content = CONTENT[: size * 1000]
    s3.put_object(Bucket=bucket, Key="pre fix/a", Body=content)
    stored = await reader.open_object("a")
    assert stored.size == len(content)
    assert await rest_of(stored, size) == content
    assert await stored.read(size) == b""
    stored.close()


async def test_an_empty_object_is_one(reader: AsyncS3Reader, s3: S3Client, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="pre fix/a", Body=b"")
    stored = await reader.open_object("a")
    assert (stored.size, await stored.read(100)) == (0, b"")
    stored.close()


async def test_what_is_not_there_is_told_with_its_uri(reader: AsyncS3Reader, s3_proxy: S3Proxy, bucket: str) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        await reader.open_object("no thing")
    assert raised.value.filename == f"s3://{bucket}/pre%20fix/no%20thing"
    assert s3_proxy.operations == ["GetObject"]


async def test_wrong_credentials_are_never_tried_again(
    monkeypatch: pytest.MonkeyPatch, s3_proxy: S3Proxy, bucket: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    reader = AsyncS3Reader(bucket, endpoint_url=s3_proxy.url, policy=QUICK)
    await reader.open()
    with pytest.raises(PermissionError):
        await reader.open_object("a")
    await reader.close()
    assert s3_proxy.operations == ["GetObject"]


async def test_redirects_are_followed(
    reader: AsyncS3Reader, s3_server: RcloneServer, s3_proxy: S3Proxy, key: str
) -> None:
    with S3Proxy(s3_server.url) as goal:
        s3_proxy.inject(redirect(307, goal.url), times=None)
        stored = await reader.open_object(key)
        assert await rest_of(stored) == CONTENT
        stored.close()
        assert goal.operations == ["GetObject"]


@pytest.mark.parametrize("fault", [truncate(0), truncate(MIB), reset(), throttle(), internal_error(), slow(0.1)])
async def test_what_fails_once_is_tried_again(reader: AsyncS3Reader, s3_proxy: S3Proxy, key: str, fault: Fault) -> None:
    s3_proxy.inject(fault, operation="GetObject")
    stored = await reader.open_object(key)
    assert await rest_of(stored) == CONTENT
    stored.close()


async def test_a_read_goes_on_where_it_was(reader: AsyncS3Reader, s3_proxy: S3Proxy, key: str) -> None:
    s3_proxy.inject(truncate(MIB), operation="GetObject", times=2)
    stored = await reader.open_object(key)
    assert await rest_of(stored) == CONTENT
    stored.close()
    assert [request.headers.get("Range") for request in s3_proxy.requests] == [
        None,
        f"bytes={MIB}-{len(CONTENT) - 1}",
        f"bytes={2 * MIB}-{len(CONTENT) - 1}",
    ]


@pytest.mark.parametrize("fault", [truncate(0), reset(), throttle(), internal_error()])
async def test_what_fails_for_good_never_looks_like_the_end(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, key: str, fault: Fault
) -> None:
    s3_proxy.inject(truncate(MIB), operation="GetObject")
    s3_proxy.inject(fault, operation="GetObject", nth=2, times=None)
    stored = await reader.open_object(key)
    with pytest.raises(ObjectStoreTransientError):
        await rest_of(stored)
    with pytest.raises(ObjectStoreTransientError):
        await stored.read(1)
    stored.close()


async def test_an_answer_with_less_than_it_says_is_not_the_end(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, key: str
) -> None:
    async def shortened(exchange: Exchange) -> web.StreamResponse:
        async with await exchange.ask() as answer:
            headers = {name: answer.headers[name] for name in ("Content-Range", "ETag")}
            return web.Response(status=answer.status, body=(await answer.read())[:100], headers=headers)

    s3_proxy.inject(truncate(MIB), operation="GetObject")
    s3_proxy.inject(shortened, operation="GetObject", nth=2, times=2)
    stored = await reader.open_object(key)
    assert await rest_of(stored) == CONTENT
    stored.close()


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:100], CONTENT * 2], ids=["other", "shorter", "longer"])
async def test_an_object_that_is_replaced_is_not_read_on(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, s3: S3Client, bucket: str, key: str, content: bytes
) -> None:
    s3_proxy.inject(truncate(MIB), operation="GetObject")
    stored = await reader.open_object(key)
    await stored.read(1)
    s3.put_object(Bucket=bucket, Key=f"pre fix/{key}", Body=content)
    with pytest.raises(ObjectStoreError, match="was replaced"):
        await rest_of(stored)
    stored.close()


async def test_a_connection_serves_one_object_after_another(reader: AsyncS3Reader, s3_proxy: S3Proxy, key: str) -> None:
    for _ in range(3):
        stored = await reader.open_object(key)
        await rest_of(stored)
        stored.close()
    assert s3_proxy.connections == 1


@pytest.fixture
def large(s3_server: RcloneServer, bucket: str) -> str:
    """The name of an object that no buffers on its way have room for."""
    folder = s3_server.folder / bucket / "pre fix"
    folder.mkdir()
    with (folder / "large").open("wb") as file:
        file.truncate(64 * MIB)
    return "large"


async def test_an_object_that_is_closed_early_leaves_no_connection(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, large: str
) -> None:
    stored = await reader.open_object(large)
    await stored.read(1)
    assert s3_proxy.connections == 1
    stored.close()
    with pytest.raises(ObjectStoreError, match="no longer read"):
        await stored.read(1)
    await eventually(lambda: s3_proxy.connections == 0)
    assert s3_proxy.operations == ["GetObject"]


async def test_an_object_that_is_closed_while_it_is_asked_for_again_leaves_no_connection(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, large: str
) -> None:
    s3_proxy.inject(truncate(MIB), operation="GetObject")
    s3_proxy.inject(hold := Hold(), operation="GetObject", nth=2)
    stored = await reader.open_object(large)
    reading = asyncio.ensure_future(rest_of(stored))
    await eventually(hold.reached.is_set)
    stored.close()
    hold.release()
    with pytest.raises(ObjectStoreError, match="no longer read"):
        await reading
    await eventually(lambda: s3_proxy.connections == 0)
    assert s3_proxy.operations == ["GetObject", "GetObject"]


async def test_who_is_cancelled_while_it_waits_for_the_answer_leaves_no_connection(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, large: str
) -> None:
    s3_proxy.inject(hold := Hold(), operation="GetObject")
    opening = asyncio.ensure_future(reader.open_object(large))
    await eventually(hold.reached.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    hold.release()
    await eventually(lambda: s3_proxy.connections == 0)


async def test_who_is_cancelled_just_as_the_answer_comes_leaves_no_connection(
    reader: AsyncS3Reader, s3_proxy: S3Proxy, large: str
) -> None:
    def cancel(**_: object) -> None:
        opening.cancel()

    reader._client.meta.events.register("after-call.s3.GetObject", cancel)
    opening = asyncio.ensure_future(reader.open_object(large))
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert s3_proxy.operations == ["GetObject"]
    await eventually(lambda: s3_proxy.connections == 0)


async def test_a_coroutine_that_reads_may_take_its_first_step_outside_of_a_task(
    reader: AsyncS3Reader, key: str
) -> None:
    result = bytearray()

    async def read() -> None:
        stored = await reader.open_object(key)
        result.extend(await rest_of(stored))
        stored.close()

    going_on = start_eagerly(read())
    assert isinstance(going_on, asyncio.Task)
    await going_on
    assert result == CONTENT
