"""GET of an object: the server fetches it from its target, and the result is the answer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO
from urllib.parse import quote

import pytest

from etl_server import AsyncReader, ETLServer
from etl_server.testing import Driver, Target
from etl_server.wire.names import encode_uname
from tests.conftest import Live, Serve
from tests.raw_client import RawClient
from tests.stages import (
    STORED,
    Script,
    Stage,
    StageConnection,
    answering,
    by_name,
    hanging_up,
    refusing,
    resetting,
    resetting_at_once,
    response,
    saying,
    stalling,
)
from tests.testing.odd_names import ODD_NAMES

from .conftest import Drive
from .transforms import ALL_TOLD, ALL_UPPER, EAGER_STREAMS, STREAMS, SWALLOWING, Upper

ETL_PATH = "/v1/etl/_object/dev/s3cr3t"


def put(target: Target, name: str, content: bytes) -> None:
    """Make an object of `src`."""
    path = target.path("src", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_pulled_object_is_answered_transformed(
    serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]
) -> None:
    large = os.urandom(3 << 20)
    put(target, "a.txt", b"hello")
    put(target, "large", large)
    put(target, "empty", b"")
    driver = await drive(serve(cls, host_target=target.url))
    reply = await driver.pull("src", "a.txt")
    assert (reply.status, reply.body) == (200, b"HELLO")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert (await driver.pull("src", "large")).body == large.upper()
    reply = await driver.pull("src", "empty")
    assert (reply.status, reply.body) == (200, b"")
    assert "content-length" not in reply.headers


@pytest.mark.parametrize("cls", ALL_TOLD)
async def test_a_transform_is_told_uname_and_arguments(
    serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]
) -> None:
    put(target, "dir/a b.txt", b"12345")
    reply = await (await drive(serve(cls, host_target=target.url))).pull("src", "dir/a b.txt", etl_args='{"a": "b c"}')
    assert json.loads(reply.body) == [5, "ais/@#/src/dir/a b.txt", '{"a": "b c"}']


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_every_name_is_asked_for_as_one_segment(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    async with Stage(answering(response(200, b"content"))) as stage:
        live = serve(cls, host_target=stage.url + ETL_PATH)
        async with Driver(live.url, target) as driver:
            for name in ODD_NAMES:
                assert (await driver.pull("src", name)).body == b"CONTENT"
    segments = [quote(f"ais/@#/src/{name}", safe="@", errors="surrogateescape") for name in ODD_NAMES]
    assert [request.target for request in stage.requests] == [f"{ETL_PATH}/{segment}" for segment in segments]


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_of_the_query_only_latest_ver_is_passed_on(
    serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]
) -> None:
    put(target, "a", b"x")
    driver = await drive(serve(cls, host_target=target.url))
    assert (await driver.pull("src", "a", etl_args="b", latest=True)).status == 200
    assert (await driver.pull("src", "a", etl_args="b")).status == 200
    assert [request.query for request in target.requests] == ["latest-ver=true", ""]


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_latest_ver_cannot_smuggle_anything(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    put(target, "a", b"x")
    values = ["true%26owt%3d5", "true%0d%0aevil:%201", "a%20HTTP/1.1%0d%0a%0d%0aGET%20/", "%C3%A9"]
    async with RawClient(serve(cls, host_target=target.url).port) as client:
        for value in values:
            await client.get(f"/{encode_uname(target.uname('src', 'a'))}?latest-ver={value}")
            assert (await client.answer())[::2] == (200, b"X")
    assert len(target.requests) == len(values)
    for request in target.requests:
        assert "evil" not in request.headers
        assert request.query.startswith("latest-ver=")
        assert "&" not in request.query


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_the_token_goes_along(serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]) -> None:
    put(target, "a", b"x")
    await (await drive(serve(cls, host_target=target.url, authn_token="t0ken"))).pull("src", "a")
    await (await drive(serve(cls, host_target=target.url))).pull("src", "a")
    assert [request.headers.get("authorization") for request in target.requests] == ["Bearer t0ken", None]


async def test_without_a_target_pull_says_what_is_missing(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Upper))
    reply = await driver.pull("src", "a")
    assert reply.status == 503
    assert "AIS_TARGET_URL" in json.loads(reply.body)["detail"]
    assert (await driver.push("src", "a", data=b"x")).body == b"X"


# A target that answers with an error


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_the_targets_error_is_passed_on(serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]) -> None:
    reply = await (await drive(serve(cls, host_target=target.url))).pull("src", "missing")
    assert (reply.status, reply.body) == (404, b"no such object")
    assert reply.headers["content-type"].startswith("text/plain")


STATUSES = {
    "500": response(500, b"disk failed"),
    "429": response(429, b"slow down"),
    "403": response(403, b"no", chunked=True),
    "307": response(307, b"", {"Location": "/elsewhere"}),
    "204": response(204),
    "206": response(206, b"part of it"),
}


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_every_status_but_200_is_an_error(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    scripts = {status: saying(answer) for status, answer in STATUSES.items()}
    async with Stage(by_name(scripts)) as stage:
        live = serve(cls, host_target=stage.url + ETL_PATH)
        async with Driver(live.url, target) as driver:
            for status, answer in STATUSES.items():
                reply = await driver.pull("src", status)
                if int(status) >= 400:
                    assert (str(reply.status), reply.body in answer) == (status, True)
                else:
                    assert reply.status == 502, status
    assert len(stage.requests) == len(STATUSES)


# A target that cannot be talked to


async def pull_fails(client: RawClient, target: Target, name: str) -> None:
    await client.get("/" + encode_uname(target.uname("src", name)))
    answer = await client.answer()
    assert answer.status == 502, name
    assert "detail" in json.loads(answer.body)
    await client.put("/src/a", b"still alive")
    assert (await client.answer()).body == b"STILL ALIVE"


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_a_target_that_refuses_is_a_bad_gateway(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    with refusing() as netloc:
        async with RawClient(serve(cls, host_target=f"http://{netloc}{ETL_PATH}").port) as client:
            await pull_fails(client, target, "a")


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_a_target_that_fails_is_a_bad_gateway(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    async with Stage(by_name(FAULTS)) as stage:
        live = serve(cls, host_target=stage.url + ETL_PATH, io_timeout=0.3)
        for fault in FAULTS:
            async with RawClient(live.port) as client:
                await pull_fails(client, target, fault)
    async with Stage(resetting_at_once) as stage, RawClient(serve(cls, host_target=stage.url).port) as client:
        await pull_fails(client, target, "a")


async def stalling_in_its_body(connection: StageConnection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    await connection.ended()


FAULTS: dict[str, Script] = {
    "resets": resetting,
    "hangs up": hanging_up,
    "stalls": stalling,
    "stalls in its body": stalling_in_its_body,
    "no HTTP": saying(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "half a head": saying(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "no framing": saying(b"HTTP/1.1 200 OK\r\n\r\nperhaps all of it"),
    "no framing, and says so": saying(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nperhaps all of it"),
    "no framing, and is old": saying(b"HTTP/1.0 200 OK\r\n\r\nperhaps all of it"),
    "no body": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
}
HALVES: dict[str, Script] = {
    "cut": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
    "chunks cut": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    "no chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"),
}


@pytest.mark.parametrize("cls", [Upper, *STREAMS, *EAGER_STREAMS, *SWALLOWING])
async def test_half_an_object_is_never_a_whole(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    async with Stage(by_name(HALVES)) as stage, Stage(answering(STORED)) as destination:
        live = serve(cls, host_target=stage.url + ETL_PATH, direct_put_retries=0)
        for half in HALVES:
            async with RawClient(live.port) as client:
                await client.get("/" + encode_uname(target.uname("src", half)))
                answer = await client.answer()
                assert answer.status == 502 or (cls is not Upper and not answer.whole), half
        async with Driver(live.url, target) as driver:
            for half in HALVES:
                assert (await driver.pull("src", half, pipeline=destination.url)).status == 502, half
        assert not any(request.complete for request in destination.requests)


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_kept_connection_that_the_target_closed_is_not_an_error(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    async with Stage(saying(response(200, b"x"))) as stage:  # closes after each answer, without saying so
        live = serve(cls, host_target=stage.url + ETL_PATH)
        async with Driver(live.url, target) as driver:
            assert [(await driver.pull("src", "a")).body for _ in range(5)] == [b"X"] * 5


# Connections


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_one_connection_to_the_target_serves_many_objects(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    async with Stage(answering(response(200, b"content"))) as stage:
        live = serve(cls, host_target=stage.url + ETL_PATH)
        async with Driver(live.url, target) as driver:
            for _ in range(10):
                assert (await driver.pull("src", "a")).body == b"CONTENT"
        assert stage.connections == 1


@pytest.mark.parametrize("raises", [False, True])
async def test_closing_early_gives_the_connection_back_to_the_pool(
    serve: Serve, target: Target, drive: Drive, raises: bool
) -> None:
    class Start(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            start = reader.read(10)
            if raises:
                raise ValueError("no such format")
            yield start

    put(target, "large", bytes(4 << 20))
    live = serve(Start, host_target=target.url, max_connections=3)
    driver = await drive(live)
    for _ in range(10):
        assert (await driver.pull("src", "large")).status == (500 if raises else 200)
    assert pooled_places(live) == (3, 3)


async def test_a_client_that_goes_away_gives_the_connection_back_to_the_pool(
    serve: Serve, target: Target, drive: Drive
) -> None:
    closed = threading.Semaphore(0)

    class Endless(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            try:
                while piece := reader.read(1 << 16):
                    yield piece
            finally:
                reader.close()
                closed.release()

    put(target, "large", bytes(64 << 20))
    live = serve(Endless, host_target=target.url, max_connections=3)
    for _ in range(5):
        async with RawClient(live.port) as client:
            await client.get("/" + encode_uname(target.uname("src", "large")))
            assert (await client.head())[0] == 200
        assert await asyncio.to_thread(closed.acquire, timeout=10)
    assert pooled_places(live) == (3, 3)


def pooled_places(live: Live) -> tuple[int, int]:
    """Free places of the session's pool for the target, and how many it has in all."""
    pools = live.server.session.adapters["http://"].poolmanager.pools  # type: ignore[attr-defined]
    (pool,) = [pools[key].pool for key in pools.keys()]  # noqa: SIM118 - they cannot be iterated over
    return pool.qsize(), pool.maxsize


async def test_an_object_that_was_read_in_part_leaves_a_usable_connection(
    serve: Serve, target: Target, drive: Drive
) -> None:
    class Start(ETLServer):
        async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
            yield await reader.read(10)
            await asyncio.sleep(0.1)  # the rest arrives meanwhile, and nobody wants it

    live = serve(Start, host_target=target.url)
    async with Driver(live.url, target, object_timeout=5) as driver:
        for size in (300_000, 520_000, 600_000, 700_000, 800_000):
            put(target, "object", bytes(size))
            assert (await driver.pull("src", "object")).body == bytes(10)


# Streams


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_the_first_output_leaves_before_the_last_input_has_come(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    rest_is_due = asyncio.Event()

    async def slow(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await rest_is_due.wait()
        await connection.send(b"-last")

    async with Stage(slow) as stage, RawClient(serve(cls, host_target=stage.url + ETL_PATH).port) as client:
        await client.get("/" + encode_uname(target.uname("src", "a")))
        assert (await client.head())[0] == 200
        assert await client.next_chunk() == b"first"
        rest_is_due.set()
        assert await client.next_chunk() == b"-last"
        assert await client.next_chunk() == b""


@pytest.mark.parametrize("cls", STREAMS)
async def test_the_target_is_held_up_while_the_client_does_not_read(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    pieces = 256
    sent = 0
    stuck = asyncio.Event()

    async def endless(connection: StageConnection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (pieces << 20))
        while sent < pieces:
            sent += 1
            connection.writer.write(bytes(1 << 20))
            try:
                await asyncio.wait_for(connection.writer.drain(), 0.3)
            except asyncio.TimeoutError:
                break
        stuck.set()

    async with Stage(endless) as stage, RawClient(serve(cls, host_target=stage.url + ETL_PATH).port) as client:
        await client.get("/" + encode_uname(target.uname("src", "a")))
        await asyncio.wait_for(stuck.wait(), 20)
    assert sent < pieces // 2
