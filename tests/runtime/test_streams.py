"""`transform_stream` in every combination of where an object comes from and where it goes."""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote_plus

import pytest

from etl_server import AsyncReader, ETLServer, Settings
from etl_server.runtime.outbound import Outbound
from etl_server.testing import Driver, Target
from etl_server.wire.names import encode_uname
from tests.conftest import Live, Serve
from tests.helpers import eventually, health
from tests.peak_memory import DELIVERIES, SOURCES, AsyncPass, Pass, measure
from tests.raw_client import PATIENCE, RawAnswer, RawClient
from tests.runtime.transforms import EAGER_STREAMS, STREAMS, AsyncUpper, Upper
from tests.stages import STORED, Stage, StageConnection, answering, response, saying, saying_early

MIB = 1 << 20
ETL_PATH = "/v1/etl/_object/dev/secret"


def request(source: str, target: Target, name: str = "a") -> str:
    """Method and target of a request whose object is not in its body."""
    if source == "pull":
        return f"GET /{encode_uname(target.uname('src', name))}"
    if source == "download":
        original = quote_plus(f"{target.url}/{encode_uname(target.uname('src', name))}")
        return f"POST /download?object_to=dst/{name}&original_url={original}"
    fqn = quote_plus(quote_plus(str(target.path("src", name))))
    return f"PUT /src/{name}?etl_fqn={fqn}"


async def ask(client: RawClient, line: str, *headers: str) -> None:
    lines = [f"{line} HTTP/1.1", "Host: x", "Content-Length: 0", *headers, "", ""]
    await client.send("\r\n".join(lines))


async def answer(live: Live, line: str, *headers: str) -> RawAnswer:
    async with RawClient(live.port) as client:
        await ask(client, line, *headers)
        return await client.answer()


def is_refused(reply: RawAnswer) -> bool:
    """Whether nobody can take the answer for a whole object."""
    return reply.status >= 400 or not reply.whole


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Target]:
    """A target whose bucket `src` is where AIStore would keep it, so that its files may be named."""
    source = tmp_path / "@ais" / "src" / "%ob"
    source.mkdir(parents=True)
    with Target({"src": source, "dst": tmp_path / "dst"}, secret="secret") as running:
        yield running


# What goes in comes out


@pytest.mark.parametrize("cls", STREAMS)
async def test_every_source_goes_every_way(serve: Serve, objects: Target, cls: type[ETLServer]) -> None:
    live = serve(cls, host_target=objects.url)
    wrong: list[object] = []
    for name, size in (("empty", 0), ("one", 1), ("large", 3 * MIB + 17)):
        data = random.Random(size).randbytes(size)
        objects.path("src", name).write_bytes(data)
        async with Driver(live.url, objects) as driver, RawClient(live.port) as client:
            for source in ("push", "chunked push", "pull", "download", "file"):
                for destination in ("", objects.destination("dst", name)):
                    if source == "push":
                        pushed = await driver.push("src", name, data=data, pipeline=destination)
                        reply = RawAnswer(pushed.status, dict(pushed.headers), pushed.body, True)
                    elif source == "chunked push":
                        await client.start_chunked("/src/a", f"ais-node-url: {destination}\r\n")
                        for start in range(0, size, 100_000):
                            await client.chunk(data[start : start + 100_000])
                        await client.chunk(b"")
                        reply = await client.answer()
                    else:
                        await ask(client, request(source, objects, name), f"ais-node-url: {destination}")
                        reply = await client.answer()
                    if destination:
                        stored = objects.read("dst", name)
                        objects.path("dst", name).unlink()
                        is_right = reply.status == 204 and stored == data.upper()
                    else:
                        is_right = reply.status == 200 and reply.whole and reply.body == data.upper()
                    if not is_right:
                        wrong.append((name, source, bool(destination), reply.status))
    assert wrong == []


@pytest.mark.parametrize("cls", STREAMS)
async def test_the_driver_can_push_a_file_to_a_server_that_answers_meanwhile(
    serve: Serve, objects: Target, cls: type[ETLServer]
) -> None:
    objects.path("src", "a").write_bytes(bytes(3 * MIB))
    async with Driver(serve(cls).url, objects, object_timeout=5) as driver:
        assert (await driver.push("src", "a")).body == bytes(3 * MIB)


@pytest.mark.parametrize("cls", STREAMS)
async def test_many_streams_at_once_do_not_mix(serve: Serve, objects: Target, cls: type[ETLServer]) -> None:
    contents = {f"object {number}": bytes([97 + number]) * (200_000 + number) for number in range(24)}
    for name, data in contents.items():
        objects.path("src", name).write_bytes(data)
    live = serve(cls, host_target=objects.url)
    async with Driver(live.url, objects) as driver:
        replies = await asyncio.gather(
            *(driver.pull("src", name, pipeline=objects.destination("dst", name)) for name in contents)
        )
    assert {reply.status for reply in replies} == {204}
    assert {name: objects.read("dst", name) for name in contents} == {
        name: data.upper() for name, data in contents.items()
    }


# On constant memory


@pytest.mark.parametrize("cls", [Pass, AsyncPass])
async def test_a_stream_takes_constant_memory(tmp_path: Path, cls: type[ETLServer]) -> None:
    size = 64 * MIB
    peaks = await measure(cls, size, tmp_path)
    assert [(peak.source, peak.delivery) for peak in peaks] == [(a, b) for a in SOURCES for b in DELIVERIES]
    assert {peak.arrived for peak in peaks} == {size}
    assert [peak for peak in peaks if peak.growth > 24 * MIB] == []


async def test_an_object_of_two_gibibytes_streams_through_as_little(tmp_path: Path) -> None:
    size = 2048 * MIB
    (peak,) = await measure(Pass, size, tmp_path, ("pushed",), ("direct put",))
    assert peak.arrived == size
    assert peak.growth < 24 * MIB


# Output leaves while input still comes


@pytest.mark.parametrize("cls", EAGER_STREAMS)
@pytest.mark.parametrize("source", ["push", "chunked push", "pull", "download"])
async def test_the_first_output_leaves_before_the_last_input_has_come(
    serve: Serve, target: Target, cls: type[ETLServer], source: str
) -> None:
    rest_is_due = asyncio.Event()

    async def origin(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await rest_is_due.wait()
        await connection.send(b"-last")

    async def destination(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(STORED)

    async with Stage(origin) as upstream, Stage(destination) as stage:
        live = serve(cls, host_target=upstream.url + ETL_PATH)
        for delivery in ("inline", "direct put"):
            rest_is_due.clear()
            pipeline = f"ais-node-url: {stage.url}\r\n" if delivery == "direct put" else ""
            async with RawClient(live.port) as client:
                if source == "push":
                    await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\n{pipeline}Content-Length: 10\r\n\r\nfirst")
                elif source == "chunked push":
                    await client.start_chunked("/src/a", pipeline)
                    await client.chunk(b"first")
                elif source == "pull":
                    await client.send(f"GET /ais%2F@%23%2Fsrc%2Fa HTTP/1.1\r\nHost: x\r\n{pipeline}\r\n")
                else:
                    url = quote_plus(upstream.url + "/a")
                    await client.send(
                        f"POST /download?object_to=a&original_url={url} HTTP/1.1\r\nHost: x\r\n"
                        f"{pipeline}Content-Length: 0\r\n\r\n"
                    )
                if pipeline:
                    await stage.until(lambda: any(request.body == b"first" for request in stage.requests))
                else:
                    assert (await client.head())[0] == 200
                    assert await client.next_chunk() == b"first"
                rest_is_due.set()
                if source == "push":
                    await client.send(b"-last")
                elif source == "chunked push":
                    await client.chunk(b"-last")
                    await client.chunk(b"")
                if pipeline:
                    assert (await client.answer()).status == 204
                    assert stage.requests[-1].body == b"first-last"
                else:
                    assert await client.next_chunk() == b"-last"
                    assert await client.next_chunk() == b""


# Ending early


class Begins(ETLServer):
    """Reads a little; then it is done, or raises, or goes on for ever."""

    ended: threading.Semaphore

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        try:
            yield reader.read(10)
            if etl_args == "raise":
                raise ValueError("no such format")
            while etl_args == "go on":
                yield bytes(65536)
        finally:
            self.ended.release()


class AsyncBegins(Begins):
    async def transform_stream(  # type: ignore[override]
        self, reader: AsyncReader, path: str, etl_args: str
    ) -> AsyncIterator[bytes]:
        try:
            yield await reader.read(10)
            if etl_args == "raise":
                raise ValueError("no such format")
            while etl_args == "go on":
                yield bytes(65536)
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            self.ended.release()


BEGINS = [Begins, AsyncBegins]


def counting(cls: type[Begins]) -> type[Begins]:
    return type(cls.__name__, (cls,), {"ended": threading.Semaphore(0), "max_concurrency": 2})


async def ends(cls: type[Begins]) -> None:
    assert await asyncio.to_thread(cls.ended.acquire, timeout=20), "the transform was not ended"


@pytest.mark.parametrize("cls", BEGINS)
@pytest.mark.parametrize("source", ["pull", "download", "file"])
async def test_however_a_transform_ends_the_connection_it_reads_from_is_given_back(
    serve: Serve, objects: Target, cls: type[Begins], source: str
) -> None:
    objects.path("src", "a").write_bytes(bytes(8 * MIB))
    made = counting(cls)
    live = serve(made, host_target=objects.url, max_connections=2)
    line = request(source, objects)
    query = "&" if "?" in line else "?"
    for _ in range(2):
        done = await answer(live, line)
        assert (done.status, done.body, done.whole) == (200, bytes(10), True)
        raised = await answer(live, f"{line}{query}etl_args=raise")
        assert is_refused(raised)
        async with RawClient(live.port) as client:
            await ask(client, f"{line}{query}etl_args=go+on")
            assert (await client.head())[0] == 200
        for _ in range(3):
            await ends(made)
    # Neither the connections nor the places of the transform would last, if one were lost with every object.
    await eventually(lambda: live.worker.admission.in_flight == 0)
    assert (await answer(live, line)).body == bytes(10)
    await eventually(lambda: objects.open_connections <= 2)


@pytest.mark.parametrize("cls", BEGINS)
async def test_a_next_stage_that_refuses_early_ends_the_transform(serve: Serve, cls: type[Begins]) -> None:
    made = counting(cls)
    async with Stage(saying_early(response(507, b"bucket is full"))) as stage:
        live = serve(made)
        for _ in range(4):
            async with RawClient(live.port) as client:
                await client.put("/src/a?etl_args=go+on", bytes(10), f"ais-node-url: {stage.url}\r\n")
                reply = await client.answer()
            assert (reply.status, reply.body) == (507, b"bucket is full")
            await ends(made)


async def test_a_request_that_is_cancelled_at_whatever_moment_leaves_no_connection_behind() -> None:
    async with Stage(answering(STORED)) as stage:
        outbound = Outbound(Settings.load(max_connections=2))
        for moment in range(40):
            asking = asyncio.ensure_future(outbound.request("PUT", f"{stage.url}/a", (), b"x"))
            for _ in range(moment):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            if not asking.cancelled():
                asking.result().close()
        (await asyncio.wait_for(outbound.request("PUT", f"{stage.url}/a", (), b"x"), PATIENCE)).close()
        outbound.close()
        await asyncio.wait_for(stage.until(lambda: stage.open == 0), PATIENCE)


class WaitsForever(ETLServer):
    """Yields, then waits for what never comes."""

    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield b"start"
        await asyncio.Event().wait()


async def test_a_next_stage_that_refuses_is_heard_while_an_async_transform_waits(serve: Serve) -> None:
    async with Stage(saying_early(response(507, b"bucket is full"))) as stage:
        async with RawClient(serve(WaitsForever).port) as client:
            await client.put("/src/a", b"x", f"ais-node-url: {stage.url}\r\n")
            reply = await client.answer()
        assert (reply.status, reply.body) == (507, b"bucket is full")


@pytest.mark.parametrize("cls", EAGER_STREAMS)
@pytest.mark.parametrize("source", ["pull", "download"])
async def test_a_client_that_leaves_while_the_source_stalls_ends_the_reading_and_blocks_nobody(
    serve: Serve, target: Target, cls: type[ETLServer], source: str
) -> None:
    async def stalls(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(512 * 1024))
        await connection.ended()

    async with Stage(stalls) as stage:
        live = serve(type("OneByOne", (cls,), {"max_concurrency": 1}), host_target=stage.url + ETL_PATH)
        async with RawClient(live.port) as client:
            if source == "pull":
                await client.get("/ais%2F@%23%2Fsrc%2Fa")
            else:
                await ask(client, f"POST /download?object_to=a&original_url={quote_plus(stage.url)}")
            assert (await client.head())[0] == 200
            received = 0
            while received < 512 * 1024:
                received += len(await client.next_chunk())
        assert await asyncio.wait_for(health(live.port), 5) == (200, b"Running")
        await asyncio.wait_for(stage.until(lambda: stage.open == 0), 5)
        async with RawClient(live.port) as client:
            await client.put("/src/b", b"next")
            assert (await asyncio.wait_for(client.answer(), 5)).body == b"next"


@pytest.mark.parametrize("cls", [Upper, AsyncUpper])
async def test_a_client_that_leaves_while_a_whole_object_is_read_blocks_nobody(
    serve: Serve, cls: type[ETLServer]
) -> None:
    async def stalls(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(300_000))
        half_is_sent.set()
        await connection.ended()

    half_is_sent = asyncio.Event()
    async with Stage(stalls) as stage:
        live = serve(cls)
        async with RawClient(live.port) as client:
            await ask(client, f"POST /download?object_to=a&original_url={quote_plus(stage.url)}")
            await half_is_sent.wait()
            await asyncio.sleep(0.05)  # for the rest of it to be waited for
        assert await asyncio.wait_for(health(live.port), 5) == (200, b"Running")
        await asyncio.wait_for(stage.until(lambda: stage.open == 0), 5)


@pytest.mark.parametrize("cls", BEGINS)
async def test_a_body_that_is_not_read_to_its_end_does_not_disturb_the_next_request(
    serve: Serve, cls: type[Begins]
) -> None:
    async with RawClient(serve(counting(cls)).port) as client:
        for size in (11, 100_000, 4 * MIB):
            sending = asyncio.ensure_future(client.put("/src/a", b"0123456789" + bytes(size - 10)))
            reply = await client.answer()
            await sending
            assert (reply.status, reply.body) == (200, b"0123456789")


# What breaks off is no object


class Swallows(ETLServer):
    """Makes do with what it could read."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        try:
            while piece := reader.read(1000):
                yield piece
        except Exception:
            yield b"... and that is all"


class SwallowsAtOnce(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        data = b""
        try:
            while piece := reader.read(1000):
                data += piece
        except Exception:
            data += b"... and that is all"
        yield data


class AsyncSwallows(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        try:
            async for piece in reader:
                yield piece
        except Exception:
            yield b"... and that is all"


class AsyncSwallowsAtOnce(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        data = b""
        try:
            async for piece in reader:
                data += piece
        except Exception:
            data += b"... and that is all"
        yield data


SWALLOWS = [Swallows, SwallowsAtOnce, AsyncSwallows, AsyncSwallowsAtOnce]
CUT = {
    "short of its length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst",
    "short of its last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
    "within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfir",
    "of no known length": b"HTTP/1.1 200 OK\r\n\r\nfirst",
}


@pytest.mark.parametrize("cls", [*SWALLOWS, *STREAMS])
@pytest.mark.parametrize("source", ["pull", "download"])
async def test_an_object_that_breaks_off_never_becomes_a_whole_one(
    serve: Serve, target: Target, cls: type[ETLServer], source: str
) -> None:
    taken_for_whole: list[object] = []
    for how, data in CUT.items():
        if (source, how) == ("download", "of no known length"):
            continue  # any server on the Web may answer so
        async with Stage(saying(data)) as origin, Stage(saying(STORED)) as stage:
            live = serve(cls, host_target=origin.url + ETL_PATH, direct_put_retries=0)
            line = "GET /ais%2F@%23%2Fsrc%2Fa"
            if source == "download":
                line = f"POST /download?object_to=a&original_url={quote_plus(origin.url)}"
            inline = await answer(live, line)
            delivered = await answer(live, line, f"ais-node-url: {stage.url}/dst")
            if not is_refused(inline):
                taken_for_whole.append((how, "inline", inline))
            if not is_refused(delivered) or any(request.complete for request in stage.requests):
                taken_for_whole.append((how, "direct put", delivered, stage.requests))
    assert taken_for_whole == []


@pytest.mark.parametrize("cls", SWALLOWS)
async def test_a_body_whose_client_vanishes_never_becomes_a_whole_object(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(saying(STORED)) as stage:
        live = serve(cls)
        for headers in ("Content-Length: 10", "Transfer-Encoding: chunked"):
            async with RawClient(live.port) as client:
                await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\nais-node-url: {stage.url}\r\n{headers}\r\n\r\n")
                await client.send(b"first" if "Length" in headers else b"5\r\nfirst\r\n")
                await eventually(lambda: live.worker.admission.in_flight == 1)
                client.reset()
            await eventually(lambda: live.worker.admission.in_flight == 0)
        await eventually(lambda: stage.open == 0)
        assert not any(request.complete for request in stage.requests)


@pytest.mark.parametrize("cls", SWALLOWS)
async def test_a_file_that_cannot_be_read_never_becomes_an_object(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    # A regular file by its type, whose reading fails: nothing is mapped at address 0.
    live = serve(cls, fqn_roots="/proc")
    assert is_refused(await answer(live, f"PUT /src/a?etl_fqn={quote_plus(quote_plus('/proc/self/mem'))}"))


@pytest.mark.parametrize("cls", SWALLOWS)
async def test_a_body_that_is_too_large_never_becomes_a_smaller_object(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(saying(STORED)) as stage, RawClient(serve(cls, max_body=8).port) as client:
        await client.start_chunked("/src/a", f"ais-node-url: {stage.url}\r\n")
        await client.chunk(b"five.")
        await client.chunk(b"five.")
        await client.chunk(b"")
        assert is_refused(await client.answer())
        assert not any(request.complete for request in stage.requests)


@pytest.mark.parametrize("cls", SWALLOWS)
async def test_an_object_of_the_target_that_is_too_large_never_becomes_a_smaller_one(
    serve: Serve, objects: Target, cls: type[ETLServer]
) -> None:
    objects.path("src", "a").write_bytes(bytes(100_000))
    live = serve(cls, host_target=objects.url, max_body=50_000)
    for source in ("pull", "download", "file"):
        assert is_refused(await answer(live, request(source, objects))), source


class Midway(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield reader.read(5)
        yield bytes(MIB)
        raise ValueError("midway")


class AsyncMidway(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield await reader.read(5)
        yield bytes(MIB)
        raise ValueError("midway")


class MidwayStr(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        yield reader.read(5)
        yield bytes(2 * MIB)
        yield "text"


@pytest.mark.parametrize("cls", [Midway, AsyncMidway, MidwayStr])
async def test_a_transform_that_fails_midway_never_makes_a_whole_object(
    serve: Serve, objects: Target, cls: type[ETLServer]
) -> None:
    objects.path("src", "a").write_bytes(b"hello")
    live = serve(cls, host_target=objects.url)
    destination = f"ais-node-url: {objects.destination('dst', 'a')}"
    for source in ("pull", "download", "file"):
        assert is_refused(await answer(live, request(source, objects)))
        delivered = await answer(live, request(source, objects), destination)
        assert delivered.status == 500
        assert delivered.body.startswith(b'{"detail": "Processing error: ')
    async with RawClient(live.port) as client:
        await client.put("/src/a", b"hello")
        assert is_refused(await client.answer())
    async with RawClient(live.port) as client:
        await client.put("/src/a", b"hello", f"{destination}\r\n")
        assert (await client.answer()).status == 500
    assert objects.names("dst") == []
    assert await health(live.port) == (200, b"Running")


# The reader


TEXT = b"first line\nsecond\r\n\nlast without an end" + bytes(range(256)) * 400


class TellsOfReader(ETLServer):
    """Reads in all the ways in which a binary file can be read."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        buffer = bytearray(9)
        told: list[object] = [
            reader.readable(),
            reader.closed,
            reader.read(0),
            reader.readline(),
            reader.readline(3),
            reader.readinto(buffer),  # type: ignore[attr-defined]
            bytes(buffer),
            len(reader.read1(1)),  # type: ignore[attr-defined]
            reader.read(70_000),
            len(reader.readlines(1)),
            sum(map(len, reader)),
            reader.read(),
            reader.read(5),
            reader.readline(),
        ]
        yield repr(told).encode()


def what_a_file_would_tell() -> bytes:
    reader = io.BytesIO(TEXT)
    buffer = bytearray(9)
    told: list[object] = [True, False, reader.read(0), reader.readline(), reader.readline(3)]
    told += [reader.readinto(buffer), bytes(buffer), len(reader.read1(1)), reader.read(70_000)]
    told += [len(reader.readlines(1)), sum(map(len, reader)), b"", b"", b""]
    return repr(told).encode()


class Lists(ETLServer):
    """Lists a tar archive, which it reads as a stream."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        with tarfile.open(fileobj=reader, mode="r|*") as archive:
            for member in archive:
                file = archive.extractfile(member)
                yield json.dumps([member.name, file and len(file.read())]).encode()


class Decodes(ETLServer):
    """Reads text, line by line."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        for line in io.TextIOWrapper(reader, "latin-1", newline="\n"):
            yield line.upper().encode("latin-1", "replace")


async def by_all_ways(live: Live, objects: Target, data: bytes) -> dict[str, bytes]:
    """What becomes of the same object, by each way it can come."""
    objects.path("src", "a").write_bytes(data)
    results: dict[str, bytes] = {}
    async with Driver(live.url, objects) as driver, RawClient(live.port) as client:
        results["push"] = (await driver.push("src", "a", data=data)).body
        await client.start_chunked("/src/a")
        for start in range(0, len(data), 1013):
            await client.chunk(data[start : start + 1013])
        await client.chunk(b"")
        results["chunked push"] = (await client.answer()).body
        for source in ("pull", "download", "file"):
            await ask(client, request(source, objects))
            results[source] = (await client.answer()).body
        async with driver.websocket() as socket:
            await socket.send("a", data)
            results["websocket"] = bytes((await socket.receive()).data)  # type: ignore[arg-type]
    return results


async def test_the_reader_is_a_binary_file_wherever_the_object_comes_from(serve: Serve, objects: Target) -> None:
    results = await by_all_ways(serve(TellsOfReader, host_target=objects.url), objects, TEXT)
    assert results == dict.fromkeys(results, what_a_file_would_tell())


async def test_archives_and_text_can_be_read_from_the_reader(serve: Serve, objects: Target) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, size in (("a.txt", 5), ("b.bin", 300_000)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(random.Random(size).randbytes(size)))
    results = await by_all_ways(serve(Lists, host_target=objects.url), objects, packed.getvalue())
    assert results == dict.fromkeys(results, b'["a.txt", 5]["b.bin", 300000]')
    lines = b"ab\nc\r\nd" * 50_000
    results = await by_all_ways(serve(Decodes, host_target=objects.url), objects, lines)
    assert results == dict.fromkeys(results, lines.upper())


async def test_an_async_reader_reads_exactly_wherever_the_object_comes_from(serve: Serve, objects: Target) -> None:
    class AsyncTells(ETLServer):
        async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
            parts = [await reader.read(0), await reader.read(10), await reader.read(70_000)]
            rest = b"".join([piece async for piece in reader])
            yield repr([*parts, rest, await reader.read(), await reader.read(5)]).encode()

    results = await by_all_ways(serve(AsyncTells, host_target=objects.url), objects, TEXT)
    told = repr([b"", TEXT[:10], TEXT[10:70_010], TEXT[70_010:], b"", b""]).encode()
    assert results == dict.fromkeys(results, told)
