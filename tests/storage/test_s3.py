from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from etl_server.errors import ConfigError, ObjectStoreError, ObjectStoreTransientError
from etl_server.storage import RetryPolicy, S3ObjectStore, open_store
from tests.helpers import UNREADABLE
from tests.raw_client import PATIENCE

from .s3_proxy import (
    Exchange,
    Fault,
    Hold,
    S3Proxy,
    answer,
    internal_error,
    lost_answer,
    redirect,
    reset,
    slow,
    throttle,
    truncate,
)
from .s3_servers import ACCESS_KEY, SECRET_KEY, RcloneServer, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
PART = 5 * MIB
CONTENT = os.urandom(2 * PART + 12345)
QUICK = RetryPolicy(tries=3, first_wait=0.01)


@pytest.fixture
def store(s3_proxy: S3Proxy, bucket: str) -> Iterator[S3ObjectStore]:
    """A store with a prefix in a new bucket, behind the proxy."""
    client = s3_client(s3_proxy.url, read_timeout=2)
    with S3ObjectStore(bucket, "pre fix", client=client, part_size=PART, policy=QUICK) as opened:
        yield opened
    client.close()


def read(store: S3ObjectStore, name: str, start: int = 0, stop: int | None = None) -> bytes:
    with store.open_object(name, start, stop) as stream:
        return stream.read()


def left_over(s3: S3Client, bucket: str) -> list[str]:
    """The keys of uploads in parts that are neither complete nor aborted."""
    try:
        uploads = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    except s3.exceptions.NoSuchUpload:  # rclone's answer where there never was one
        return []
    return [upload["Key"] for upload in uploads]


def test_an_object_is_what_was_put(store: S3ObjectStore, s3: S3Client, bucket: str) -> None:
    put = store.put_object("dir/obj", b"content", content_type="text/x-test")
    there = s3.get_object(Bucket=bucket, Key="pre fix/dir/obj")
    assert there["Body"].read() == b"content"
    assert there["ContentType"] == "text/x-test"
    info = store.stat_object("dir/obj")
    assert (info.name, info.size, info.etag) == ("dir/obj", 7, put.etag)
    assert info.modified is not None
    assert info.modified.utcoffset() is not None
    assert [listed._replace(modified=info.modified) for listed in store.list_objects()] == [info]
    assert read(store, "dir/obj") == b"content"
    assert store.get_uri("dir/obj") == f"s3://{bucket}/pre%20fix/dir/obj"
    store.delete_object("dir/obj")
    store.delete_object("dir/obj")
    assert not store.exists("dir/obj")


@pytest.mark.parametrize("bounds", [(0, None), (2, 5), (2, None), (5, 99), (99, None), (7, 7), (5, 2), (0, 0), (7, 9)])
def test_a_range_is_a_slice(store: S3ObjectStore, bounds: tuple[int, int | None]) -> None:
    store.put_object("obj", b"content")
    assert read(store, "obj", *bounds) == b"content"[slice(*bounds)]


def test_a_stream_can_be_sought_in(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    store.put_object("obj", CONTENT)
    s3_proxy.clear()
    with store.open_object("obj", 10) as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(0)
        assert stream.read(7) == CONTENT[10:17]
        assert s3_proxy.operations == ["GetObject"]
        assert stream.seek(-5, os.SEEK_END) == len(CONTENT) - 15
        assert stream.read() == CONTENT[-5:]
        stream.seek(3)
        assert stream.read(2) == CONTENT[13:15]


def test_missing_objects_and_buckets_are_named(store: S3ObjectStore, s3_server: RcloneServer) -> None:
    for ask in (store.open_object, store.stat_object, store.get_object_size):
        with pytest.raises(FileNotFoundError) as caught:
            ask("not there")
        assert caught.value.filename == store.get_uri("not there")
    with S3ObjectStore("no-such-bucket", client=s3_client(s3_server.url), policy=QUICK) as nowhere:
        for use in (lambda: list(nowhere.list_objects()), lambda: nowhere.put_object("a", b"")):
            with pytest.raises(FileNotFoundError, match="no-such-bucket"):
                use()


def test_a_name_of_no_characters_is_refused(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    for ask in (store.get_uri, store.stat_object, store.open_object, store.delete_object, store.exists):
        with pytest.raises(ValueError, match="object name"):
            ask("")
    with pytest.raises(ValueError, match="object name"):
        store.put_object("", b"")
    assert s3_proxy.requests == []


def test_a_wrong_key_is_not_tried_again(s3_proxy: S3Proxy, bucket: str) -> None:
    with S3ObjectStore(bucket, client=s3_client(s3_proxy.url, access_key="wrong"), policy=QUICK) as store:
        for ask in (
            lambda: store.stat_object("a"),
            lambda: store.put_object("a", b""),
            lambda: list(store.list_objects()),
            lambda: store.exists("a"),
        ):
            s3_proxy.clear()
            with pytest.raises(PermissionError):
                ask()
            assert len(s3_proxy.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "SignatureDoesNotMatch"),
        (401, "Unauthorized"),
        (400, "ExpiredToken"),
        (400, "InvalidToken"),
    ],
)
def test_what_is_denied_is_not_tried_again(store: S3ObjectStore, s3_proxy: S3Proxy, status: int, code: str) -> None:
    s3_proxy.inject(answer(status, code), times=None)
    for ask in (
        lambda: store.open_object("a"),
        lambda: store.put_object("a", b""),
        lambda: store.put_object("a", pieces(CONTENT)),
        lambda: store.delete_object("a"),
        lambda: list(store.list_objects()),
    ):
        s3_proxy.requests.clear()
        with pytest.raises(PermissionError, match=code):
            ask()
        assert len(s3_proxy.requests) == 1


FAULTS = [throttle(), internal_error(), reset(), slow(5), answer(429, "TooManyRequests"), answer(400, "RequestTimeout")]


@pytest.mark.parametrize("fault", FAULTS, ids=["throttled", "500", "reset", "timeout", "429", "400"])
def test_what_may_pass_is_tried_again(store: S3ObjectStore, s3_proxy: S3Proxy, fault: Fault) -> None:
    s3_proxy.inject(fault, nth=1)
    store.put_object("obj", b"content")
    s3_proxy.inject(fault, operation="GetObject")
    assert read(store, "obj") == b"content"
    assert s3_proxy.operations == ["PutObject", "PutObject", "GetObject", "GetObject"]


def test_trying_again_has_an_end(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    s3_proxy.inject(throttle(), times=None)
    for ask in (
        lambda: store.put_object("obj", b"content"),
        lambda: store.open_object("obj"),
        lambda: store.stat_object("obj"),
        lambda: next(store.list_objects()),
        lambda: store.exists("obj"),
    ):
        s3_proxy.requests.clear()
        with pytest.raises(ObjectStoreTransientError, match="s3://"):
            ask()
        assert len(s3_proxy.requests) == QUICK.tries


@pytest.mark.parametrize("status", [200, 203])
def test_an_answer_that_is_no_xml_is_tried_again(store: S3ObjectStore, s3_proxy: S3Proxy, status: int) -> None:
    async def page(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response(status=status, text="Starting up. Please wait.", content_type="text/html")

    store.put_object("obj", b"content")
    s3_proxy.inject(page, operation="ListObjects")
    assert [info.name for info in store.list_objects()] == ["obj"]
    s3_proxy.inject(page, operation="ListObjects", times=None)
    with pytest.raises(ObjectStoreTransientError):
        list(store.list_objects())


def test_an_answer_that_is_no_list_is_not_an_empty_one(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    async def page(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")

    s3_proxy.inject(page, operation="ListObjects")
    with pytest.raises(ObjectStoreError, match="the answer is no list of objects"):
        list(store.list_objects())


def test_a_put_that_something_else_acknowledged_is_no_success(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    async def page(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")

    store.put_object("obj", b"old")
    s3_proxy.inject(page, operation="PutObject")
    with pytest.raises(ObjectStoreError, match="without storing it"):
        store.put_object("obj", b"content")


def test_a_server_that_tells_no_etag_has_stored_it_all_the_same(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    """As AIStore does of a bucket whose checksums are no MD5s."""

    async def unnamed(exchange: Exchange) -> web.StreamResponse:
        async with await exchange.ask() as response:
            return web.Response(status=response.status)

    s3_proxy.inject(unnamed, operation="PutObject")
    assert store.put_object("obj", b"content").etag is None
    assert read(store, "obj") == b"content"


def test_other_refusals_are_final(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    s3_proxy.inject(answer(400, "InvalidArgument"))
    with pytest.raises(ObjectStoreError, match="InvalidArgument") as caught:
        store.put_object("obj", b"content")
    assert not isinstance(caught.value, ObjectStoreTransientError)
    assert len(s3_proxy.requests) == 1


# Streams that break off


def test_a_stream_that_is_cut_goes_on_where_it_was(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    store.put_object("obj", CONTENT)
    for nth, size in enumerate((3 * MIB + 7, 10), 1):
        s3_proxy.inject(truncate(size), operation="GetObject", nth=nth)
    assert read(store, "obj", 5, len(CONTENT) - 5) == CONTENT[5:-5]
    assert s3_proxy.operations.count("GetObject") == 3


def test_a_truncated_body_is_never_a_shorter_object(store: S3ObjectStore, s3_proxy: S3Proxy, tmp_path: Path) -> None:
    store.put_object("obj", CONTENT)
    store.put_object("small", b"content")
    s3_proxy.inject(truncate(0), operation="GetObject", times=None)
    for name in ("small", "obj"):
        with store.open_object(name) as stream, pytest.raises(ObjectStoreTransientError):
            stream.read()
        with pytest.raises(ObjectStoreTransientError):
            store.download_object(name, tmp_path / "goal")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "goal").write_bytes(b"old")
        with pytest.raises(ObjectStoreTransientError):
            store.download_object(name, tmp_path / "goal", overwrite=True)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
        (tmp_path / "goal").unlink()


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(
    store: S3ObjectStore, s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    store.put_object("obj", CONTENT)
    s3_proxy.inject(truncate(3 * MIB), operation="GetObject")
    with store.open_object("obj") as stream:
        stream.read(MIB)
        s3.put_object(Bucket=bucket, Key="pre fix/obj", Body=CONTENT[::-1])
        with pytest.raises(ObjectStoreError, match="replaced"):
            stream.read()


def test_a_server_that_ignores_the_range_is_an_error(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    store.put_object("obj", b"content")

    async def whole(exchange: Exchange) -> web.StreamResponse:
        return web.Response(body=b"content")

    s3_proxy.inject(whole, operation="GetObject")
    with pytest.raises(ObjectStoreError, match="gave others"):
        store.open_object("obj", 3)


def test_a_server_that_gives_less_than_the_range_is_an_error(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    store.put_object("obj", b"content")

    async def less(exchange: Exchange) -> web.StreamResponse:
        return web.Response(status=206, headers={"Content-Range": "bytes 3-4/7"}, body=b"te")

    for stop in (None, 6, 100):
        s3_proxy.inject(less, operation="GetObject")
        with pytest.raises(ObjectStoreError, match="gave others: bytes 3-4/7"):
            store.open_object("obj", 3, stop)


@pytest.mark.parametrize("size", [PART, PART + 100, len(CONTENT) - 1])
def test_a_download_of_an_object_that_becomes_shorter_leaves_nothing(
    store: S3ObjectStore, s3_proxy: S3Proxy, s3: S3Client, bucket: str, tmp_path: Path, size: int
) -> None:
    """Also where the server names no ETags, as AIStore does of some buckets."""

    async def unnamed(exchange: Exchange) -> web.StreamResponse:
        async with await exchange.ask() as response:
            content = await response.read()
            headers = {name: response.headers[name] for name in ("Content-Range",) if name in response.headers}
            if exchange.request.method == "HEAD":
                headers["Content-Length"] = response.headers["Content-Length"]
                s3.put_object(Bucket=bucket, Key="pre fix/obj", Body=CONTENT[:size])
            return web.Response(status=response.status, headers=headers, body=content or None)

    store.put_object("obj", CONTENT)
    s3_proxy.inject(unnamed, times=None)
    with pytest.raises(ObjectStoreError, match="replaced"):
        store.download_object("obj", tmp_path / "goal")
    assert list(tmp_path.iterdir()) == []


# Uploads


def pieces(content: bytes, size: int = MIB - 17) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, len(CONTENT)])
def test_a_stream_of_any_length_is_stored(store: S3ObjectStore, s3_proxy: S3Proxy, size: int) -> None:
    info = store.put_object("obj", pieces(CONTENT[:size]))
    assert info.size == size
    assert ("PutObject" in s3_proxy.operations) == (size <= PART)
    assert read(store, "obj") == CONTENT[:size]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, len(CONTENT)])
def test_bytes_of_any_length_are_stored(store: S3ObjectStore, s3_proxy: S3Proxy, size: int, kind: type) -> None:
    info = store.put_object("obj", kind(CONTENT[:size]))
    assert info.size == size
    assert ("PutObject" in s3_proxy.operations) == (size <= PART)
    assert read(store, "obj") == CONTENT[:size]


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, len(CONTENT)])
def test_a_file_goes_up_and_comes_down(store: S3ObjectStore, tmp_path: Path, size: int) -> None:
    (tmp_path / "up").write_bytes(CONTENT[:size])
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    store.upload_object("dir/obj", tmp_path / "up", tell)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    told.clear()
    store.download_object("dir/obj", tmp_path, callback=tell)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert (tmp_path / "dir" / "obj").read_bytes() == CONTENT[:size]


@pytest.mark.parametrize("way", ["file", "stream", "download"])
def test_parts_are_on_their_way_at_the_same_time(
    store: S3ObjectStore, s3_proxy: S3Proxy, tmp_path: Path, way: str
) -> None:
    (tmp_path / "up").write_bytes(CONTENT)
    store.put_object("obj", CONTENT)
    transfers: dict[str, Callable[[], object]] = {
        "file": lambda: store.upload_object("obj", tmp_path / "up"),
        "stream": lambda: store.put_object("obj", pieces(CONTENT)),
        "download": lambda: store.download_object("obj", tmp_path / "down"),
    }
    s3_proxy.clear()
    operation = "GetObject" if way == "download" else "UploadPart"
    holds = [Hold(), Hold()]
    for nth, hold in enumerate(holds, 1):
        s3_proxy.inject(hold, operation=operation, nth=nth)
    with ThreadPoolExecutor(1) as thread:
        transfer = thread.submit(transfers[way])
        try:
            assert all(hold.reached.wait(PATIENCE) for hold in holds)
            asked = [request for request in s3_proxy.requests if request.operation == operation]
            assert len({(request.raw_path, request.headers.get("Range")) for request in asked}) > 1  # no repeats of one
        finally:
            for hold in holds:
                hold.release()
        transfer.result()
    assert read(store, "obj") == CONTENT
    assert way != "download" or (tmp_path / "down").read_bytes() == CONTENT


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize("fault", [throttle(), reset()], ids=["throttled", "reset"])
def test_a_part_of_an_upload_is_tried_again(
    store: S3ObjectStore, s3_proxy: S3Proxy, operation: str, fault: Fault
) -> None:
    s3_proxy.inject(fault, operation=operation)
    store.put_object("obj", pieces(CONTENT))
    assert read(store, "obj") == CONTENT


@pytest.mark.parametrize(("size", "operation"), [(PART, "PutObject"), (len(CONTENT), "UploadPart")])
def test_a_file_is_sent_from_its_beginning_again(
    store: S3ObjectStore, s3_proxy: S3Proxy, tmp_path: Path, size: int, operation: str
) -> None:
    (tmp_path / "up").write_bytes(CONTENT[:size])
    s3_proxy.inject(throttle(), operation=operation)
    store.upload_object("obj", tmp_path / "up")
    assert read(store, "obj") == CONTENT[:size]


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_leaves_the_old_object_and_no_parts(
    store: S3ObjectStore, s3_proxy: S3Proxy, s3: S3Client, bucket: str, tmp_path: Path, operation: str
) -> None:
    store.put_object("obj", b"old")
    (tmp_path / "up").write_bytes(CONTENT)
    s3_proxy.inject(answer(500, "InternalError"), operation=operation, times=None)
    with pytest.raises(ObjectStoreTransientError):
        store.put_object("obj", pieces(CONTENT))
    with pytest.raises(ObjectStoreTransientError):
        store.upload_object("obj", tmp_path / "up")
    assert left_over(s3, bucket) == []
    assert read(store, "obj") == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [0, 1, PART + 1, 2 * PART + 1])
def test_an_iterable_that_fails_leaves_the_old_object_and_no_parts(
    store: S3ObjectStore, s3: S3Client, bucket: str, error: type[BaseException], after: int
) -> None:
    def broken() -> Iterator[bytes]:
        yield from pieces(CONTENT[:after])
        raise error("the source broke")

    store.put_object("obj", b"old")
    with pytest.raises(error, match="the source broke"):
        store.put_object("obj", broken())
    assert left_over(s3, bucket) == []
    assert read(store, "obj") == b"old"


def test_no_part_is_under_way_when_an_upload_is_aborted(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    hold = Hold()
    s3_proxy.inject(hold, operation="UploadPart")

    def broken() -> Iterator[bytes]:
        yield from pieces(CONTENT[: 2 * PART + 1] + bytes(PART))
        assert hold.reached.wait(30)
        threading.Timer(0.2, hold.release).start()
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        store.put_object("obj", broken())
    assert s3_proxy.operations[-1] == "AbortMultipartUpload"
    assert "UploadPart" in s3_proxy.operations


def test_a_file_that_shrinks_while_it_goes_up_is_an_error(store: S3ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(bytes(20 * PART))
    with pytest.raises(ObjectStoreError, match="shorter") as caught:
        store.upload_object("obj", tmp_path / "up", lambda *_: os.truncate(tmp_path / "up", 10))
    assert not isinstance(caught.value, ObjectStoreTransientError)
    assert not store.exists("obj")


@pytest.mark.parametrize("part_size", [PART, 1000])
def test_a_file_that_cannot_be_read_is_not_tried_again(
    s3_proxy: S3Proxy, s3: S3Client, bucket: str, part_size: int
) -> None:
    client = s3_client(s3_proxy.url)
    with S3ObjectStore(bucket, client=client, part_size=part_size, policy=QUICK) as store:
        store.put_object("obj", b"old")
        s3_proxy.clear()
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            store.upload_object("obj", UNREADABLE)
        assert s3_proxy.operations.count("PutObject") <= 1
        assert len({request.raw_path for request in s3_proxy.requests}) == len(s3_proxy.requests)
        assert read(store, "obj") == b"old"
    assert left_over(s3, bucket) == []
    client.close()


def test_a_put_whose_answer_is_lost_is_done_again(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    s3_proxy.inject(lost_answer(), operation="PutObject")
    store.put_object("obj", b"content")
    assert read(store, "obj") == b"content"
    assert s3_proxy.operations.count("PutObject") == 2


@pytest.mark.parametrize("answered", [204, 404])
def test_a_deletion_whose_answer_is_lost_is_one(store: S3ObjectStore, s3_proxy: S3Proxy, answered: int) -> None:
    store.put_object("obj", b"content")
    s3_proxy.inject(lost_answer(), operation="DeleteObject")
    if answered == 404:  # which S3 never says, but others do
        s3_proxy.inject(answer(404, "NoSuchKey"), operation="DeleteObject", nth=2)
    store.delete_object("obj")
    assert s3_proxy.operations.count("DeleteObject") == 2
    assert not store.exists("obj")


@pytest.mark.parametrize("refusal", [answer(403, "AccessDenied"), answer(400, "InvalidArgument")], ids=["403", "400"])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("by_client", [False, True], ids=["by the policy", "by the client"])
def test_uploads_are_looked_for_only_where_an_answer_was_lost(
    s3_proxy: S3Proxy, bucket: str, refusal: Fault, lost: bool, by_client: bool
) -> None:
    retries: Any = {"total_max_attempts": 2 if by_client else 1, "mode": "standard"}
    client = s3_client(s3_proxy.url, retries=retries)
    if lost:
        s3_proxy.inject(lost_answer(), operation="CreateMultipartUpload")
    s3_proxy.inject(refusal, operation="CreateMultipartUpload", nth=1 + lost, times=None)
    policy = RetryPolicy(tries=1) if by_client else QUICK
    with (
        S3ObjectStore(bucket, client=client, part_size=PART, policy=policy) as store,
        pytest.raises((PermissionError, ObjectStoreError)),
    ):
        store.put_object("obj", pieces(CONTENT))
    assert s3_proxy.operations.count("CreateMultipartUpload") == 1 + lost
    assert ("ListMultipartUploads" in s3_proxy.operations) == lost
    client.close()


@pytest.mark.parametrize("fault", [internal_error(), reset()], ids=["500", "reset"])
def test_uploads_are_looked_for_where_the_only_try_may_have_been_obeyed(
    s3_proxy: S3Proxy, bucket: str, fault: Fault
) -> None:
    client = s3_client(s3_proxy.url)
    s3_proxy.inject(fault, operation="CreateMultipartUpload")
    with (
        S3ObjectStore(bucket, client=client, part_size=PART, policy=RetryPolicy(tries=1)) as store,
        pytest.raises(ObjectStoreTransientError),
    ):
        store.put_object("obj", pieces(CONTENT))
    assert s3_proxy.operations == ["CreateMultipartUpload", "ListMultipartUploads"]
    client.close()


def test_a_part_without_an_etag_is_a_failure(store: S3ObjectStore, s3_proxy: S3Proxy) -> None:
    async def acknowledge(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response()

    s3_proxy.inject(acknowledge, operation="UploadPart", nth=2)
    with pytest.raises(ObjectStoreError, match="without an ETag"):
        store.put_object("obj", pieces(CONTENT))
    assert s3_proxy.operations[-1] == "AbortMultipartUpload"


def test_checksums_of_parts_are_handed_back(moto_proxy: S3Proxy, unique: Callable[[], str]) -> None:
    """boto3's clients send them unless told otherwise."""
    completions: list[str] = []

    async def keep(exchange: Exchange) -> web.StreamResponse:
        completions.append(await exchange.request.text())
        return await answer(400, "InvalidRequest")(exchange)

    client = s3_client(moto_proxy.url, request_checksum_calculation="when_supported")
    bucket = unique()
    client.create_bucket(Bucket=bucket)
    moto_proxy.inject(keep, operation="CompleteMultipartUpload")
    with (
        S3ObjectStore(bucket, client=client, part_size=PART, policy=QUICK) as store,
        pytest.raises(ObjectStoreError, match="InvalidRequest"),
    ):
        store.put_object("obj", pieces(CONTENT))
    assert completions[0].count("<ChecksumCRC32>") == completions[0].count("<PartNumber>") == 2
    client.close()


def test_a_stream_takes_up_no_more_than_is_told(s3: S3Client, bucket: str) -> None:
    part = 4 * MIB
    size = 18 * part
    with S3ObjectStore(bucket, client=s3, part_size=part, policy=QUICK) as store:
        store.put_object("warm", pieces(CONTENT))
        piece = bytes(MIB)
        tracemalloc.start()
        try:
            store.put_object("obj", repeat(piece, size // MIB))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert store.get_object_size("obj") == size
        assert peak <= store.stream_memory(size) + MIB
        assert peak > store.stream_memory(size) // 2  # and it tells no more than need be
        assert store.stream_memory(MIB) == 2 * MIB
        assert store.stream_memory(100 << 30) > 10 * store.stream_memory()


NO_SUCH_UPLOAD = answer(404, "NoSuchUpload")
"""What S3 says of an upload that is complete or aborted. moto's server completes it again, or fails."""


@pytest.fixture
def moto_proxy(moto_url: str) -> Iterator[S3Proxy]:
    """A proxy before moto's server, whose ETags are those of S3."""
    with S3Proxy(moto_url) as proxy:
        yield proxy


@pytest.fixture
def moto_store(moto_proxy: S3Proxy, unique: Callable[[], str]) -> Iterator[S3ObjectStore]:
    client = s3_client(moto_proxy.url)
    bucket = unique()
    client.create_bucket(Bucket=bucket)
    with S3ObjectStore(bucket, client=client, part_size=PART, policy=QUICK) as opened:
        yield opened
    client.close()


@pytest.mark.parametrize("lost", [1, 2, QUICK.tries])
def test_an_upload_whose_begin_was_lost_is_aborted_and_those_of_others_are_not(
    moto_store: S3ObjectStore, moto_proxy: S3Proxy, moto_url: str, lost: int
) -> None:
    moto = s3_client(moto_url)
    bucket = moto_store.get_uri("obj").split("/")[2]
    other = moto.create_multipart_upload(Bucket=bucket, Key="obj")["UploadId"]
    moto.upload_part(Bucket=bucket, Key="obj", UploadId=other, PartNumber=1, Body=b"of another")
    longer = moto.create_multipart_upload(Bucket=bucket, Key="object")["UploadId"]
    moto_proxy.inject(lost_answer(), operation="CreateMultipartUpload", times=lost)
    if lost < QUICK.tries:
        moto_store.put_object("obj", pieces(CONTENT))
        assert read(moto_store, "obj") == CONTENT
    else:
        with pytest.raises(ObjectStoreTransientError):
            moto_store.put_object("obj", pieces(CONTENT))
    left = moto.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert {upload["UploadId"] for upload in left} == {other, longer}
    moto.close()


def test_a_completion_whose_answer_is_lost_is_found_out(moto_store: S3ObjectStore, moto_proxy: S3Proxy) -> None:
    moto_proxy.inject(lost_answer(), operation="CompleteMultipartUpload")
    moto_proxy.inject(NO_SUCH_UPLOAD, operation="CompleteMultipartUpload", nth=2)
    stored = moto_store.put_object("obj", pieces(CONTENT))
    assert moto_proxy.operations[-3:] == ["CompleteMultipartUpload"] * 2 + ["HeadObject"]
    assert stored.size == len(CONTENT)
    assert stored.etag == moto_store.stat_object("obj").etag
    assert read(moto_store, "obj") == CONTENT


@pytest.mark.parametrize("there", [None, CONTENT[::-1], CONTENT[:-1]], ids=["nothing", "other content", "less"])
def test_a_completion_of_an_upload_that_is_gone_is_no_success(
    moto_store: S3ObjectStore, moto_proxy: S3Proxy, there: bytes | None
) -> None:
    if there is not None:
        moto_store.put_object("obj", pieces(there))
    moto_proxy.inject(NO_SUCH_UPLOAD, operation="CompleteMultipartUpload", times=None)
    with pytest.raises(ObjectStoreError, match="NoSuchUpload"):
        moto_store.put_object("obj", pieces(CONTENT))
    assert moto_store.exists("obj") == (there is not None)


def test_where_etags_tell_nothing_a_completion_that_may_be_lost_is_no_success(
    store: S3ObjectStore, s3_proxy: S3Proxy
) -> None:
    """rclone's server gives an object of parts the ETag of its content."""
    s3_proxy.inject(lost_answer(), operation="CompleteMultipartUpload")
    with pytest.raises(ObjectStoreError, match="NoSuchUpload"):
        store.put_object("obj", pieces(CONTENT))
    assert read(store, "obj") == CONTENT


def test_an_upload_that_fails_on_the_connection_of_an_empty_one_is_no_success(
    store: S3ObjectStore, s3_proxy: S3Proxy, tmp_path: Path
) -> None:
    """Of an empty object no `100 Continue` comes; botocore before 1.43.77 took its status for that of the next."""

    async def stored(exchange: Exchange) -> web.StreamResponse:
        assert exchange.request.headers["Expect"] == "100-continue"
        return web.Response(headers={"ETag": '"0"'})

    async def fail(exchange: Exchange) -> web.StreamResponse:
        response = await answer(503, "", xml=False)(exchange)
        response.force_close()
        return response

    s3_proxy.inject(stored, operation="PutObject")
    s3_proxy.inject(fail, operation="PutObject", nth=2, times=QUICK.tries)
    (tmp_path / "empty").touch()
    (tmp_path / "up").write_bytes(b"content")
    store.upload_object("empty", tmp_path / "empty")
    assert s3_proxy.connections == 1
    with pytest.raises(ObjectStoreTransientError, match="503"):
        store.upload_object("obj", tmp_path / "up")


def test_many_threads_share_a_store(s3: S3Client, bucket: str) -> None:
    """In the bucket's own folder, over a client with time: see what rclone's server lacks."""
    store = S3ObjectStore(bucket, client=s3, part_size=PART, policy=QUICK)

    def there_and_back(number: int) -> bool:
        content = CONTENT[: (number % 3) * PART + number]
        store.put_object(f"obj-{number}", pieces(content))
        return read(store, f"obj-{number}") == content

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(there_and_back, range(32)))
    assert len(list(store.list_objects())) == 32
    store.close()


# Listing and names


def test_a_list_is_asked_for_page_by_page(store: S3ObjectStore, s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: s3.put_object(Bucket=bucket, Key=f"pre fix/n{n:04}", Body=b""), range(1010)))
    listed = store.list_objects("n")
    first = next(listed)
    assert s3_proxy.operations == ["ListObjects"]
    s3_proxy.inject(reset(), operation="ListObjects")
    names = [first.name, *(info.name for info in listed)]
    assert names == [f"n{number:04}" for number in range(1010)]
    assert s3_proxy.operations == ["ListObjects"] * 3


NAMES = ["with space", "a#b", "a?b=c", "100%", "%2F", "a+b", "naïve/日本語/😀", "a&b;c,d", "at@sign:1", "~'()!*", "x=y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_itself(store: S3ObjectStore, s3: S3Client, bucket: str, name: str) -> None:
    store.put_object(name, b"content")
    assert s3.get_object(Bucket=bucket, Key=f"pre fix/{name}")["Body"].read() == b"content"
    assert [info.name for info in store.list_objects()] == [name]
    assert read(store, name) == b"content"


@pytest.mark.parametrize("name", ["../out", "/absolute", "a/../../out", "..", "a//b", "trailing/"])
def test_no_name_writes_outside_the_goal_of_a_download(
    moto_url: str, tmp_path: Path, name: str, unique: Callable[[], str]
) -> None:
    client = s3_client(moto_url)
    bucket = unique()
    client.create_bucket(Bucket=bucket)
    goal = tmp_path / "goal"
    goal.mkdir()
    with S3ObjectStore(bucket, client=client, policy=QUICK) as store:
        store.put_object(name, b"content")
        store.download_object(name, goal)
    assert [path.read_bytes() for path in goal.rglob("*") if path.is_file()] == [b"content"]
    assert list(tmp_path.iterdir()) == [goal]


@pytest.fixture
def unique() -> Callable[[], str]:
    return lambda: f"bucket-{os.urandom(8).hex()}"


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 server's keys where boto3 looks for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.mark.usefixtures("credentials")
def test_redirects_are_followed(s3_proxy: S3Proxy, s3_server: RcloneServer, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(CONTENT)
    s3_proxy.inject(redirect(307, s3_server.url), times=None)
    with S3ObjectStore(bucket, endpoint_url=s3_proxy.url, part_size=PART, policy=QUICK) as store:
        store.upload_object("obj", tmp_path / "up")
        store.put_object("small", b"content")
        store.download_object("obj", tmp_path / "down")
        assert {info.name: info.size for info in store.list_objects()} == {"obj": len(CONTENT), "small": 7}
    assert (tmp_path / "down").read_bytes() == CONTENT


@pytest.mark.usefixtures("credentials")
def test_a_store_is_opened_by_uri(s3_server: RcloneServer, bucket: str) -> None:
    with open_store(f"s3://{bucket}/a%20b/?endpoint_url={s3_server.url}") as store:
        store.put_object("c", b"content")
        assert store.get_uri("c") == f"s3://{bucket}/a%20b/c"
        assert [info.name for info in store.list_objects()] == ["c"]
    with open_store(f"s3://{bucket}?endpoint_url={s3_server.url}&region_name=eu-west-1") as whole:
        assert [info.name for info in whole.list_objects("a")] == ["a b/c"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("endpoint_url=foo", "Invalid endpoint"),
        ("profile_name=nope", "nope"),
        ("endpoint_url=http://127.0.0.1&addressing_style=odd", "odd"),
    ],
)
def test_options_that_make_no_client_are_told(options: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected options that make a client: .*{expected}") as raised:
        open_store(f"s3://photos?{options}")
    assert options in raised.value.detail
