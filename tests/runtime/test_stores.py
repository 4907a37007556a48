"""A server over object stores: GET reads from one, the results of PUT go to one."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import pytest
from aiobotocore.client import AioBaseClient
from aiohttp import ClientSession
from tenacity import wait_none

from etl_server import AsyncReader, ETLServer, Settings
from etl_server.errors import ConfigError, UpstreamUnreachableError
from etl_server.runtime import stores, threads
from etl_server.runtime.admission import Lease, Memory
from etl_server.runtime.s3_source import S3Source
from etl_server.runtime.stores import check_stores
from etl_server.runtime.worker import STREAM_MEMORY
from etl_server.storage import ObjectStore, RetryPolicy, open_store
from etl_server.storage.s3_async import AsyncS3Reader
from etl_server.testing import Target
from tests.conftest import Live, Serve
from tests.helpers import ServerProcess, eventually
from tests.peak_memory import MIB, memory_of
from tests.raw_client import PATIENCE, RawAnswer, RawClient
from tests.runtime.transforms import (
    ALL_EMPTY,
    ALL_TOLD,
    ALL_UPPER,
    EAGER_STREAMS,
    STREAMS,
    SWALLOWING,
    Upper,
    UpperStream,
)
from tests.storage.ais_cluster import AISCluster
from tests.storage.s3_proxy import Fault, Hold, S3Proxy, internal_error, reset, slow, throttle, truncate
from tests.storage.s3_servers import RcloneServer, set_credentials

LARGE = random.Random(4).randbytes(3 * MIB + 17)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server of these tests finds in its environment."""
    set_credentials(monkeypatch)


@pytest.fixture
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores try again at once, in threads and on the event loop."""
    rules = RetryPolicy._rules
    monkeypatch.setattr(RetryPolicy, "_rules", lambda policy: {**rules(policy), "wait": wait_none()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "store"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, folder: Path) -> str:
    """An empty store of each kind."""
    if request.param == "file":
        return f"file://{folder}"
    server: RcloneServer = request.getfixturevalue("s3_server")
    return f"s3://{request.getfixturevalue('bucket')}/some/prefix?endpoint_url={server.url}"


@pytest.fixture
def store(uri: str) -> Iterator[ObjectStore]:
    with open_store(uri) as opened:
        yield opened


async def get(live: Live, path: str, *headers: str, method: str = "GET") -> RawAnswer:
    async with RawClient(live.port) as client:
        await client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]))
        return await client.answer(method)


async def put(live: Live, path: str, data: bytes, headers: str = "") -> RawAnswer:
    async with RawClient(live.port) as client:
        await client.put(path, data, headers)
        return await client.answer()


# GET


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_objects_of_the_source_are_transformed(
    serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]
) -> None:
    live = serve(cls, source=uri)
    for size in (0, 1, 100, len(LARGE)):
        store.put_object("dir/a b.txt", LARGE[:size])
        answer = await get(live, "/dir/a%20b.txt")
        assert (answer.status, answer.body, answer.whole) == (200, LARGE[:size].upper(), True)


@pytest.mark.parametrize("cls", ALL_TOLD)
async def test_the_transform_is_told_the_name_within_the_store(
    serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]
) -> None:
    live = serve(cls, source=uri)
    names = ["a", "a/b c/d", "ä%2F+?#.txt"]
    if uri.startswith("file"):
        names += ["/a", "a//b", "../a"]  # rclone's server refuses such keys
    for name in names:
        store.put_object(name, b"12345")
        path = "".join(f"%{byte:02x}" for byte in name.encode())
        assert json.loads((await get(live, f"/{path}?etl_args=x")).body) == [5, name, "x"]
        store.delete_object(name)


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_missing_object_is_404(serve: Serve, uri: str, cls: type[ETLServer]) -> None:
    live = serve(cls, source=uri)
    for method in ("GET", "HEAD"):
        answer = await get(live, "/nothing/here", method=method)
        assert answer.status == 404
        assert method == "HEAD" or "nothing/here" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("cls", ALL_EMPTY)
async def test_an_empty_result_is_answered_as_one(
    serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]
) -> None:
    store.put_object("a", b"x")
    live = serve(cls, source=uri)
    answer = await get(live, "/a")
    assert (answer.status, answer.body, answer.whole) == (200, b"", True)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert (await get(live, "/a", "Range: bytes=0-")).status == 416


async def test_a_name_that_the_store_cannot_have_is_a_bad_request(serve: Serve, uri: str) -> None:
    live = serve(Upper, source=uri)
    assert (await get(live, "/a%00b")).status in (400, 404)
    assert (await get(live, "/")).status == 400


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_an_object_over_the_limit_is_413(
    serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]
) -> None:
    store.put_object("a", bytes(1001))
    store.put_object("b", bytes(1000))
    live = serve(cls, source=uri, max_body=1000)
    assert (await get(live, "/a")).status == 413
    assert (await get(live, "/b")).status == 200


async def test_a_pipeline_takes_the_result_on(serve: Serve, uri: str, store: ObjectStore, target: Target) -> None:
    store.put_object("a", b"hello")
    live = serve(Upper, source=uri, host_target=target.url)
    stage = f"ais-node-url: {target.destination('dst', 'a')}"
    answer = await get(live, "/a", stage, "Range: bytes=0-1")
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "5")
    assert target.path("dst", "a").read_bytes() == b"HELLO"
    target.path("dst", "a").unlink()
    assert (await get(live, "/a", stage, method="HEAD")).status == 200
    assert not target.path("dst", "a").exists()


async def test_other_methods_are_refused(serve: Serve, uri: str) -> None:
    live = serve(Upper, source=uri)
    answer = await get(live, "/a", method="DELETE")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PUT")


# AIStore


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_bucket_of_aistore_is_a_source_and_a_sink(serve: Serve, cls: type[ETLServer]) -> None:
    with AISCluster() as cluster:
        cluster.objects["pre/a b.txt"] = LARGE
        uri = f"ais://data/pre?endpoint={cluster.url}"
        live = serve(cls, source=uri, sink=uri)
        answer = await get(live, "/a%20b.txt")
        assert (answer.status, answer.body, answer.whole) == (200, LARGE.upper(), True)
        assert [request.node for request in cluster.requests] == ["gateway", "target"]  # the redirect was followed
        answer = await get(live, "/a%20b.txt", "Range: bytes=5-9")
        assert (answer.status, answer.body) == (206, LARGE[5:10].upper())
        assert (await get(live, "/a%20b.txt", method="HEAD")).status == 200
        answer = await get(live, "/nothing")
        assert answer.status == 404
        assert json.loads(answer.body) == {"detail": "Object not found: ais://data/pre/nothing"}
        answer = await put(live, "/new", LARGE)
        assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, str(len(LARGE)))
        assert cluster.objects["pre/new"] == LARGE.upper()


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_cluster_of_aistore_that_is_not_there_is_503(serve: Serve, cls: type[ETLServer]) -> None:
    live = serve(cls, source="ais://data?endpoint=http://127.0.0.1:9")
    assert (await get(live, "/a")).status == 503


# HEAD


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_head_answers_the_head_of_get(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    store.put_object("a", LARGE)
    live = serve(cls, source=uri)
    async with RawClient(live.port) as client:
        for _ in range(2):
            await client.send("HEAD /a HTTP/1.1\r\nHost: x\r\nRange: bytes=0-3\r\n\r\n")
            answer = await client.answer("HEAD")
            assert answer.status == 200
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["content-type"] == "application/octet-stream"
            length = None if cls in STREAMS else str(len(LARGE))
            assert answer.headers.get("content-length") == length
        await client.get("/a")  # nothing of a body came before this answer
        assert (await client.answer()).body == LARGE.upper()


# Range


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_range_is_one_of_the_result(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    store.put_object("a", LARGE)
    live = serve(cls, source=uri)
    whole = LARGE.upper()
    size = len(whole)
    for text, start, stop in [
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("65530-65545", 65530, 65546),
        ("5-", 5, size),
        ("0-", 0, size),
        ("-10", size - 10, size),
        (f"-{size + 1}", 0, size),
        (f"10-{2 * MIB}", 10, 2 * MIB + 1),
        (f"{size - 5}-{size + 5}", size - 5, size),
        (f"{size - 2 * MIB}-{size - 1}", size - 2 * MIB, size),
        (f"{size - 1}-", size - 1, size),
    ]:
        answer = await get(live, "/a", f"Range: bytes={text}")
        assert (answer.status, answer.whole) == (206, True), text
        assert answer.body == whole[start:stop], text
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["content-range"] in (
            f"bytes {start}-{stop - 1}/{size}",
            *([f"bytes {start}-{stop - 1}/*"] if cls in STREAMS else []),
        )
        assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_range_behind_the_end_is_416(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    store.put_object("a", LARGE[:100])
    live = serve(cls, source=uri)
    for text in ("100-", "100-200", "100-99999999", "-0"):
        answer = await get(live, "/a", f"Range: bytes={text}")
        assert (answer.status, answer.headers["content-range"]) == (416, "bytes */100"), text


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_what_is_no_single_range_is_answered_by_the_whole(
    serve: Serve, folder: Path, cls: type[ETLServer]
) -> None:
    (folder / "a").write_bytes(b"hello world")
    live = serve(cls, source=str(folder))
    for headers in (
        ["Range: bytes=0-1,4-5"],
        ["Range: bytes=5-4"],
        ["Range: bytes=-"],
        ["Range: bytes=a-b"],
        ["Range: bytes=0"],
        ["Range: pages=0-1"],
        ["Range: bytes=1-2", 'If-Range: "abc"'],
        ["If-Range: Wed, 21 Oct 2015 07:28:00 GMT", "Range: bytes=1-2"],
    ):
        answer = await get(live, "/a", *headers)
        assert (answer.status, answer.body) == (200, b"HELLO WORLD"), headers
        assert "content-range" not in answer.headers


class Fickle(ETLServer):
    """Makes less, or more, of an object every time that it is asked."""

    step = -1

    def setup(self) -> None:
        self.size = 3 * MIB

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        self.size += int(etl_args)
        for start in range(0, self.size, MIB):
            yield bytes(min(MIB, self.size - start))


@pytest.mark.parametrize("step", ["-1", "1"])
async def test_a_range_of_results_that_differ_is_never_whole(serve: Serve, folder: Path, step: str) -> None:
    (folder / "a").write_bytes(b"x")
    live = serve(Fickle, source=str(folder))
    answer = await get(live, f"/a?etl_args={step}", "Range: bytes=5-")
    assert not answer.whole
    assert len(answer.body) < int(answer.headers["content-length"])


class Failing(ETLServer):
    """Fails at the end of a large object."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while piece := reader.read(MIB):
            yield piece
        raise ValueError("the end is not right")


class AsyncFailing(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        while piece := await reader.read(MIB):
            yield piece
        raise ValueError("the end is not right")


FAILING = [Failing, AsyncFailing]


@pytest.mark.parametrize("cls", FAILING)
async def test_no_range_is_given_of_a_result_that_fails(serve: Serve, folder: Path, cls: type[ETLServer]) -> None:
    (folder / "a").write_bytes(LARGE)
    live = serve(cls, source=str(folder))
    for text in ("5-", "-5", f"{len(LARGE) - 5}-{len(LARGE) + 5}"):
        answer = await get(live, "/a", f"Range: bytes={text}")
        assert (answer.status, json.loads(answer.body)) == (500, {"detail": "Processing error: the end is not right"})


# A store that fails


@pytest.fixture
def proxied(s3_proxy: S3Proxy, bucket: str, s3: Any) -> str:
    """URI of a store behind the proxy, which holds the object `a`: LARGE."""
    s3.put_object(Bucket=bucket, Key="a", Body=LARGE)
    return f"s3://{bucket}?endpoint_url={s3_proxy.url}"


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("cls", [*ALL_UPPER, *SWALLOWING])
async def test_a_read_that_fails_for_good_is_never_answered_as_an_object(
    serve: Serve, s3_proxy: S3Proxy, proxied: str, cls: type[ETLServer]
) -> None:
    live = serve(cls, source=proxied)
    for fault in (truncate(0), reset(), throttle(), internal_error()):
        for text in ("", "0-", "-5", f"5-{2 * MIB}"):
            s3_proxy.clear()
            s3_proxy.inject(truncate(MIB), operation="GetObject")
            s3_proxy.inject(fault, operation="GetObject", nth=2, times=None)
            answer = await get(live, "/a", *([f"Range: bytes={text}"] if text else []))
            assert answer.status == 503 or (not text and not answer.whole)


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_read_that_fails_once_is_repeated(
    serve: Serve, s3_proxy: S3Proxy, proxied: str, cls: type[ETLServer]
) -> None:
    live = serve(cls, source=proxied)
    for fault in (truncate(0), truncate(MIB), reset(), throttle(), internal_error(), slow(0.1)):
        s3_proxy.clear()
        s3_proxy.inject(fault, operation="GetObject")
        answer = await get(live, "/a")
        assert (answer.status, answer.body, answer.whole) == (200, LARGE.upper(), True)


class Patient(ETLServer):
    """Reads on, whatever becomes of who asked, and says nothing before the end."""

    def setup(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended: list[Exception] = []

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        reader.read(1)
        self.begun.set()
        self.go_on.wait(PATIENCE)
        try:
            reader.read()
        except Exception as error:
            self.ended.append(error)
        yield b""


async def test_a_thread_that_reads_ends_when_nobody_waits_for_it(serve: Serve, uri: str, store: ObjectStore) -> None:
    store.put_object("a", LARGE)
    live = serve(Patient, source=uri)
    server: Any = live.server
    async with RawClient(live.port) as client:
        await client.get("/a")
        await eventually(server.begun.is_set)
        client.reset()
    await eventually(lambda: not live.worker.admission.in_flight)
    server.go_on.set()
    await eventually(lambda: server.ended)
    assert isinstance(server.ended[0], UpstreamUnreachableError)


async def test_wrong_credentials_are_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, s3_server: RcloneServer, bucket: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    live = serve(
        Upper, source=f"s3://{bucket}?endpoint_url={s3_server.url}", sink="s3://b?endpoint_url=" + s3_server.url
    )
    assert (await get(live, "/a")).status == 403
    assert (await put(live, "/a", b"x")).status == 403


@pytest.mark.usefixtures("_no_waits")
async def test_a_server_that_is_not_there_is_503(serve: Serve) -> None:
    dead = "s3://bucket?endpoint_url=http://127.0.0.1:9"
    live = serve(Upper, source=dead, sink=dead)
    assert (await get(live, "/a")).status == 503
    assert (await put(live, "/a", b"x")).status == 503


# PUT


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_results_go_to_the_sink(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    live = serve(cls, sink=uri)
    for size in (0, 1, 100, len(LARGE)):
        answer = await put(live, "/dir/a%20b", LARGE[:size])
        assert (answer.status, answer.headers["ais-direct-put-length"], answer.body) == (204, str(size), b"")
        with store.open_object("dir/a b") as stored:
            assert stored.read() == LARGE[:size].upper()


async def test_streams_into_the_sink_do_not_wait_for_each_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(threads, "MOST", 2)
    live = serve(UpperStream, sink=str(folder))
    answers = await asyncio.gather(*(put(live, f"/{number}", LARGE) for number in range(8)))
    assert {answer.status for answer in answers} == {204}


@pytest.mark.parametrize("cls", ALL_EMPTY)
async def test_an_empty_result_is_stored(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    answer = await put(serve(cls, sink=uri), "/a", b"x")
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "0")
    assert store.get_object_size("a") == 0


class Html(Upper):
    def get_mime_type(self) -> str:
        return "text/html"


async def test_results_have_their_content_type_in_the_sink(
    serve: Serve, s3_server: RcloneServer, bucket: str, s3: Any
) -> None:
    live = serve(Html, sink=f"s3://{bucket}?endpoint_url={s3_server.url}")
    assert (await put(live, "/a", b"x")).status == 204
    assert s3.head_object(Bucket=bucket, Key="a")["ContentType"] == "text/html"


async def test_with_both_stores_get_answers_and_put_stores(serve: Serve, folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"hello")
    live = serve(Upper, source=str(folder), sink=f"file://{tmp_path}/results")
    assert (await get(live, "/a")).body == b"HELLO"
    assert not (tmp_path / "results").exists()
    assert (await put(live, "/b", b"world")).status == 204
    assert (tmp_path / "results" / "b").read_bytes() == b"WORLD"
    assert (await get(live, "/b")).status == 404


async def test_without_a_sink_put_answers(serve: Serve, folder: Path) -> None:
    live = serve(Upper, source=str(folder))
    assert (await put(live, "/a", b"hello")).body == b"HELLO"
    assert list(folder.iterdir()) == []


async def test_a_pipeline_goes_before_the_sink(serve: Serve, folder: Path, target: Target) -> None:
    live = serve(Upper, sink=str(folder), host_target=target.url)
    answer = await put(live, "/a", b"hello", f"ais-node-url: {target.destination('dst', 'a')}\r\n")
    assert answer.status == 204
    assert target.path("dst", "a").read_bytes() == b"HELLO"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("cls", FAILING)
async def test_what_fails_on_its_way_is_not_stored(
    serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]
) -> None:
    store.put_object("a", b"as it was")
    answer = await put(serve(cls, sink=uri), "/a", LARGE)
    assert (answer.status, json.loads(answer.body)) == (500, {"detail": "Processing error: the end is not right"})
    with store.open_object("a") as stored:
        assert stored.read() == b"as it was"


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_what_breaks_off_is_not_stored(serve: Serve, uri: str, store: ObjectStore, cls: type[ETLServer]) -> None:
    store.put_object("a", b"as it was")
    live = serve(cls, sink=uri)
    async with RawClient(live.port) as client:
        await client.start_chunked("/a")
        await client.chunk(LARGE)
        writers = live.worker.stores._writers
        await eventually(lambda: writers._busy)
        assert live.worker.admission.memory.used >= store.stream_memory()
        client.reset()
    await eventually(lambda: not writers._busy)
    with store.open_object("a") as stored:
        assert stored.read() == b"as it was"
    assert [info.name for info in store.list_objects()] == ["a"]


async def test_what_a_growing_object_takes_up_is_counted(serve: Serve, uri: str, store: ObjectStore) -> None:
    live = serve(EAGER_STREAMS[0], sink=uri)
    memory = live.worker.admission.memory
    async with RawClient(live.port) as client:
        await client.start_chunked("/a")
        for _ in range(10):
            await client.chunk(LARGE)
        storing = store.stream_memory(10 * len(LARGE))
        assert storing > store.stream_memory() or uri.startswith("file")
        await eventually(lambda: memory.used >= STREAM_MEMORY + storing)
        await client.chunk(b"")
        assert (await client.answer()).status == 204
    await eventually(lambda: memory.used == 0)
    assert store.get_object_size("a") == 10 * len(LARGE)


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("cls", ALL_UPPER)
@pytest.mark.parametrize(("fault", "times", "status"), [(throttle(), 1, 204), (throttle(), None, 503)])
async def test_a_sink_that_is_busy_is_tried_again(
    serve: Serve, s3_proxy: S3Proxy, bucket: str, cls: type[ETLServer], fault: Fault, times: int | None, status: int
) -> None:
    s3_proxy.inject(fault, operation="PutObject", times=times)
    live = serve(cls, sink=f"s3://{bucket}?endpoint_url={s3_proxy.url}")
    assert (await put(live, "/a", b"hello")).status == status


# Names


async def test_no_name_leaves_the_directory(serve: Serve, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "dir").mkdir()
    live = serve(Upper, source=str(folder), sink=str(folder))
    absolute = str(folder.parent / "secret").replace("/", "%2f")
    for path in (
        "/..%2fsecret",
        "/../secret",
        "/%2e%2e/secret",
        "/dir/..%2f..%2fsecret",
        f"/{absolute}",
        "//../secret",
    ):
        assert (await get(live, path)).status == 404, path
        answer = await put(live, path.replace("secret", "written"), b"x")
        assert answer.status == 204, path
    assert {file.name for file in folder.parent.iterdir()} == {"secret", "store"}


async def test_links_that_lead_out_are_not_followed(serve: Serve, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    assert (await get(serve(Upper, source=str(folder)), "/link")).status == 404


# Clients


async def test_a_process_has_one_client_and_closes_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    opened: list[ObjectStore] = []
    closed = threading.Event()

    def watch(uri: str) -> ObjectStore:
        store = open_store(uri)
        opened.append(store)
        monkeypatch.setattr(store, "close", closed.set)
        return store

    monkeypatch.setattr(stores, "open_store", watch)
    (folder / "a").write_bytes(b"hello")
    live = serve(Upper, source=str(folder))
    for _ in range(3):
        assert (await get(live, "/a")).body == b"HELLO"
    assert len(opened) == 1
    assert not closed.is_set()
    live.stop()
    assert closed.is_set()


async def test_a_process_reads_s3_by_one_client_on_its_event_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, s3_proxy: S3Proxy, proxied: str
) -> None:
    opened: list[object] = []
    blocking: list[object] = []
    enter, leave = AioBaseClient.__aenter__, AioBaseClient.__aexit__

    async def watched_enter(client: AioBaseClient) -> AioBaseClient:
        opened.append(client)
        return await enter(client)

    async def watched_leave(client: AioBaseClient, *error: object) -> None:
        opened.remove(client)
        await leave(client, *error)

    monkeypatch.setattr(AioBaseClient, "__aenter__", watched_enter)
    monkeypatch.setattr(AioBaseClient, "__aexit__", watched_leave)
    monkeypatch.setattr(boto3.Session, "client", lambda *_, **__: blocking.append("a client"))
    for cls in ALL_UPPER:
        live = serve(cls, source=proxied)
        for _ in range(3):
            assert (await get(live, "/a")).body == LARGE.upper()
        assert len(opened) == 1
        live.stop()
        assert not opened
    assert not blocking
    agents = {request.headers["User-Agent"].partition("/")[0] for request in s3_proxy.requests}
    assert agents == {"aiobotocore"}


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_requests_that_end_well_share_a_connection_to_s3(
    serve: Serve, s3_proxy: S3Proxy, proxied: str, cls: type[ETLServer]
) -> None:
    live = serve(cls, source=proxied)
    for _ in range(3):
        assert (await get(live, "/a")).whole
        assert (await get(live, "/nothing")).status == 404
    assert s3_proxy.connections == 1


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_who_hangs_up_midway_leaves_no_connection_to_s3(
    serve: Serve, s3_proxy: S3Proxy, s3_server: RcloneServer, bucket: str, cls: type[ETLServer]
) -> None:
    with (s3_server.folder / bucket / "large").open("wb") as file:
        file.truncate(256 * MIB)
    live = serve(cls, source=f"s3://{bucket}?endpoint_url={s3_proxy.url}")
    for headers in ("", "Range: bytes=5-\r\n"):
        async with RawClient(live.port) as client:
            await client.send(f"GET /large HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
            await eventually(lambda: s3_proxy.connections == 1)
            if not headers:
                await client.head()
            client.reset()
        await eventually(lambda: s3_proxy.connections == 0)
        await eventually(lambda: not live.worker.admission.in_flight)


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_who_hangs_up_before_s3_answers_leaves_no_connection_to_it(
    serve: Serve, s3_proxy: S3Proxy, proxied: str, cls: type[ETLServer]
) -> None:
    s3_proxy.inject(hold := Hold(), operation="GetObject")
    live = serve(cls, source=proxied)
    async with RawClient(live.port) as client:
        await client.get("/a")
        await eventually(hold.reached.is_set)
        client.reset()
    await eventually(lambda: not live.worker.admission.in_flight)
    hold.release()
    await eventually(lambda: s3_proxy.connections == 0)


@pytest.mark.parametrize("setting", ["source", "sink"])
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gopher://x", "expected s3://bucket"),
        ("s3://", "expected s3://bucket"),
        ("s3://photos?colour=red", "expected endpoint_url or"),
        ("s3://photos?endpoint_url=nonsense", "Invalid endpoint"),
        ("s3://photos?profile_name=nobody", "profile"),
        (__file__, "expected a directory"),
        ("file:///nowhere/at/all", "expected a directory"),
    ],
)
def test_a_bad_uri_is_told_in_one_line(setting: str, uri: str, expected: str) -> None:
    if setting == "sink" and uri.startswith("file:///nowhere"):
        check_stores(Settings.load(sink=uri))  # it comes into being with the first object
        return
    with pytest.raises(ConfigError) as raised:
        check_stores(Settings.load(**{setting: uri}))
    assert f"ETL_{setting.upper()}" in raised.value.detail
    assert uri in raised.value.detail
    assert expected in raised.value.detail
    assert "\n" not in raised.value.detail


@pytest.mark.parametrize(
    "uri", ["s3://photos?colour=red", "s3://photos?addressing_style=red", "/nowhere/at/all?", "gopher://photos?"]
)
def test_what_is_shown_of_a_bad_uri_has_no_credentials(uri: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_stores(Settings.load(source=f"{uri}&endpoint_url=http://me:hunter2@127.0.0.1:9"))
    assert "endpoint_url=http://***@127.0.0.1:9" in raised.value.detail
    assert "hunter2" not in raised.value.detail


@pytest.mark.parametrize(
    ("setting", "library", "module"), [("source", "aiobotocore.config", "s3_async"), ("sink", "boto3", "s3")]
)
def test_a_library_that_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, setting: str, library: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"etl_server.storage.{module}", raising=False)
    expected = rf"^ETL_{setting.upper()}: s3://photos: expected {library} .*etl-server\[s3\]"
    with pytest.raises(ConfigError, match=expected):
        check_stores(Settings.load(**{setting: "s3://photos"}))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_ends_at_once_with_a_bad_uri(workers: str) -> None:
    with ServerProcess.serve(
        "tests.runtime.transforms:Upper", "--source", "/nowhere", environment={"ETL_WORKERS": workers}
    ) as server:
        assert server.wait() == 2
        assert server.stderr == "etl-server: ETL_SOURCE=/nowhere: expected a directory"


# Memory


@pytest.mark.parametrize(("cls", "uri"), [("Pass", "file"), ("Pass", "s3"), ("AsyncPass", "s3")], indirect=["uri"])
async def test_streams_take_constant_memory(cls: str, uri: str, folder: Path, tmp_path: Path) -> None:
    size = 256 * MIB
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(size)
    with open_store(uri) as store:
        store.upload_object("zeros", zeros)
        store.put_object("small", bytes(100))
    options = ("--source", uri, "--sink", f"file://{tmp_path}/results")
    with ServerProcess.serve(f"tests.peak_memory:{cls}", *options) as server:
        server.wait_until_listening()
        async with ClientSession(server.url) as session:

            async def take(path: str, headers: dict[str, str], expected: int) -> None:
                taken = 0
                async with session.get(path, headers=headers) as response:
                    async for piece in response.content.iter_any():
                        taken += len(piece)
                assert taken == expected

            async def send(path: str, count: int) -> None:
                with zeros.open("rb") as file:
                    file.seek(size - count)
                    async with session.put(path, data=file) as response:
                        assert (response.status, response.headers["ais-direct-put-length"]) == (204, str(count))

            await take("/small", {}, 100)
            await send("/small", 100)
            before = memory_of(server.pid, "VmRSS")
            Path(f"/proc/{server.pid}/clear_refs").write_text("5")
            await take("/zeros", {}, size)
            await take("/zeros", {"Range": "bytes=5-"}, size - 5)
            await send("/zeros", size)
            assert memory_of(server.pid, "VmHWM") - before < 24 * MIB
    assert (tmp_path / "results" / "zeros").stat().st_size == size


async def test_an_object_that_nobody_reads_from_its_first_byte_on_leaves_no_connection_to_s3(
    s3_proxy: S3Proxy, s3_server: RcloneServer, bucket: str
) -> None:
    with (s3_server.folder / bucket / "large").open("wb") as file:
        file.truncate(256 * MIB)
    reader = AsyncS3Reader(bucket, endpoint_url=s3_proxy.url)
    await reader.open()
    try:
        source = S3Source(reader, "large", None, Lease(Memory(1 << 30)))
        source.opener()
        assert source._feed is not None
        await source._feed._begin()
        source.close()  # before the loop has come to feeding it
        await eventually(lambda: s3_proxy.connections == 0)
    finally:
        await reader.close()
