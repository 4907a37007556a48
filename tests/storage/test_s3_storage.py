"""Content-addressed storage in S3, over boto3 and aiobotocore, by way of a proxy before a real server."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from aiohttp import web

from etl_server import S3Storage, simple_s3_router
from etl_server.errors import ObjectStoreError, ObjectStoreTransientError
from etl_server.storage import Digest, RetryPolicy, S3Pointer, Tags
from tests.helpers import eventually

from .s3_proxy import Exchange, Fault, Hold, S3Proxy, Seen, answer, internal_error, lost_answer, reset, truncate
from .s3_servers import aio_s3_client, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART = 1 << 16
CONTENT = os.urandom(300_000)
"""Three parts, the later ones of which are larger."""
KEY = f"pre/{hashlib.sha256(CONTENT).hexdigest()}.bin"
QUICK = RetryPolicy(tries=3, first_wait=0.01)

STREAM = ["CreateMultipartUpload", *["UploadPart"] * 3, "CompleteMultipartUpload", "HeadObject"]
COPIED = [*STREAM, "CopyObject", "HeadObject", "DeleteObject"]
COPIED_IN_PARTS = [
    *STREAM,
    *["CreateMultipartUpload", *["UploadPartCopy"] * 3, "CompleteMultipartUpload"],
    *["HeadObject", "DeleteObject"],
]
"""What is asked for, call by call. Before the copy it is the same, so each of those calls fails in one of them only."""


@asynccontextmanager
async def client_of(kind: str, url: str, **config: Any) -> AsyncIterator[Any]:
    if kind == "aiobotocore":
        async with aio_s3_client(url, **config) as client:
            yield client
    else:
        blocking = s3_client(url, **config)
        yield blocking
        blocking.close()


@pytest.fixture(params=["boto3", "aiobotocore"])
def kind(request: pytest.FixtureRequest) -> str:
    """The library that a test's client is of."""
    name: str = request.param
    return name


@pytest.fixture
async def client(kind: str, s3_proxy: S3Proxy) -> AsyncIterator[Any]:
    async with client_of(kind, s3_proxy.url) as client:
        yield client


def storage_of(client: Any, bucket: str, **options: Any) -> S3Storage:
    return S3Storage(client, simple_s3_router(bucket, "pre"), stream_part_size=PART, policy=QUICK, **options)


@pytest.fixture
def storage(client: Any, bucket: str) -> S3Storage:
    return storage_of(client, bucket)


@pytest.fixture
def moto(moto_url: str, bucket_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    """A client straight to moto's server, which takes small parts and has the bucket."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    client = s3_client(moto_url)
    client.create_bucket(Bucket=bucket_name)
    yield client
    client.close()


@pytest.fixture
def bucket_name() -> str:
    return f"test-{os.urandom(8).hex()}"


@pytest.fixture
def moto_proxy(moto_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(moto_url) as proxy:
        yield proxy


async def pieces(content: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def uploads(s3: S3Client, bucket: str) -> list[str]:
    try:
        return [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]
    except s3.exceptions.NoSuchUpload:  # rclone's answer where there never was one
        return []


def assert_nothing_is_left(s3: S3Client, bucket: str) -> None:
    """Neither an upload nor a temporary key; what is under the final key is whole."""
    assert uploads(s3, bucket) == []
    assert keys(s3, bucket) in ([], [KEY])
    if keys(s3, bucket):
        assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == CONTENT


# What is written


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "small", "large"])
async def test_content_is_read_as_it_was_written(storage: S3Storage, s3: S3Client, bucket: str, content: bytes) -> None:
    key = f"pre/{hashlib.sha256(content).hexdigest()}.txt"
    for streamed in (False, True):
        if streamed:
            pointer = await storage.write_data_stream(pieces(content), "text/plain; charset=utf-8")
        else:
            pointer = await storage.write_data(content, "text/plain")
        assert pointer == {"bucket": bucket, "key": key}
        assert await storage.read_data(pointer) == content
        assert b"".join([piece async for piece in storage.read_data_stream(pointer)]) == content
        assert keys(s3, bucket) == [key]
        assert uploads(s3, bucket) == []
        assert s3.head_object(Bucket=bucket, Key=key)["ContentType"].startswith("text/plain")
        s3.delete_object(Bucket=bucket, Key=key)


async def test_a_stream_goes_in_parts_to_a_temporary_key_and_is_copied(
    storage: S3Storage, s3: S3Client, s3_proxy: S3Proxy, bucket: str
) -> None:
    assert await storage.write_data_stream(pieces(CONTENT)) == {"bucket": bucket, "key": KEY}
    assert s3_proxy.operations == COPIED
    temporary = {request.path for request in s3_proxy.requests[:5]}
    assert len(temporary) == 1
    assert temporary == {s3_proxy.requests[-1].path}
    assert KEY not in temporary.pop()
    assert_nothing_is_left(s3, bucket)


async def test_a_stream_of_one_part_or_none_goes_straight_to_its_key(storage: S3Storage, s3_proxy: S3Proxy) -> None:
    await storage.write_data_stream(pieces(b""))
    await storage.write_data_stream(pieces(CONTENT[:PART]))
    assert s3_proxy.operations == ["HeadObject", "PutObject"] * 2


async def test_content_that_is_there_is_not_written_again(storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client) -> None:
    pointer = await storage.write_data_stream(pieces(CONTENT))
    s3_proxy.clear()
    assert await storage.write_data_stream(pieces(CONTENT, 7777)) == pointer
    assert s3_proxy.operations == [*STREAM, "DeleteObject"]
    s3_proxy.clear()
    assert await storage.write_data(CONTENT) == pointer
    assert s3_proxy.operations == ["HeadObject"]
    assert keys(s3, pointer["bucket"]) == [KEY]


async def test_something_of_another_size_under_its_key_is_replaced(
    storage: S3Storage, s3: S3Client, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key=KEY, Body=CONTENT[:-1])
    await storage.write_data_stream(pieces(CONTENT))
    assert_nothing_is_left(s3, bucket)


async def test_a_key_without_the_hash_is_always_written(client: Any, s3: S3Client, bucket: str) -> None:
    def by_name(digest: Digest, tags: Tags, *, temp: bool) -> S3Pointer:
        return {"bucket": bucket, "key": os.urandom(8).hex() if temp else tags["name"]}

    storage = S3Storage(client, by_name, stream_part_size=PART)
    for content in (CONTENT, CONTENT[::-1]):
        pointer = await storage.write_data_stream(pieces(content), tags={"name": "the name"})
        assert pointer == {"bucket": bucket, "key": "the name"}
        assert await storage.read_data(pointer) == content
    assert keys(s3, bucket) == ["the name"]


async def test_a_router_that_repeats_temporary_keys_is_refused_before_anything_is_written(
    client: Any, s3: S3Client, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="mine", Body=b"precious")

    def fixed(digest: Digest, tags: Tags, *, temp: bool) -> S3Pointer:
        return {"bucket": bucket, "key": "mine"}

    storage = S3Storage(client, fixed, stream_part_size=PART)
    with pytest.raises(ValueError, match="another place every time"):
        await storage.write_data_stream(pieces(CONTENT))
    assert s3.get_object(Bucket=bucket, Key="mine")["Body"].read() == b"precious"


async def test_routers_are_told_everything_about_the_content(client: Any, bucket: str) -> None:
    asked: list[tuple[Digest, Tags, bool]] = []
    simple = simple_s3_router(bucket)

    def route(digest: Digest, tags: Tags, *, temp: bool) -> S3Pointer:
        asked.append((digest, tags, temp))
        return simple(digest, tags, temp=temp)

    storage = S3Storage(client, route, stream_part_size=PART)
    await storage.write_data_stream(pieces(CONTENT), "image/png", content_encoding="gzip", tags={"a": "b"})
    to_come: Digest = {
        "content_hash": "",
        "content_hash_algorithm": "sha256",
        "content_size": 0,
        "content_type": "image/png",
        "content_encoding": "gzip",
    }
    whole: Digest = {**to_come, "content_hash": hashlib.sha256(CONTENT).hexdigest(), "content_size": len(CONTENT)}
    assert asked == [(to_come, {"a": "b"}, True)] * 2 + [(whole, {"a": "b"}, False)]


@pytest.mark.parametrize("threshold", [100_000, 10_000_000], ids=["in parts", "at once"])
@pytest.mark.parametrize("size", [10, len(CONTENT)], ids=["small", "large"])
async def test_type_encoding_and_tags_become_the_objects(
    kind: str, moto: S3Client, moto_url: str, bucket_name: str, threshold: int, size: int
) -> None:
    async with client_of(kind, moto_url) as client:
        storage = storage_of(client, bucket_name, copy_threshold=threshold)
        pointer = await storage.write_data_stream(
            pieces(CONTENT[:size]), "text/html", content_encoding="x-test", tags={"k y": "v =/+"}
        )
    assert pointer["key"].endswith(".html")
    there = moto.get_object(Bucket=bucket_name, Key=pointer["key"])
    assert there["Body"].read() == CONTENT[:size]
    assert (there["ContentType"], there["ContentEncoding"]) == ("text/html", "x-test")
    tags = moto.get_object_tagging(Bucket=bucket_name, Key=pointer["key"])["TagSet"]
    assert tags == [{"Key": "k y", "Value": "v =/+"}]


def test_the_threshold_is_what_s3_copies_in_one_go() -> None:
    assert inspect.signature(S3Storage).parameters["copy_threshold"].default == 5 << 30


async def test_an_object_beyond_the_threshold_is_copied_in_parts(
    kind: str, moto: S3Client, moto_proxy: S3Proxy, bucket_name: str
) -> None:
    async with client_of(kind, moto_proxy.url) as client:
        await storage_of(client, bucket_name, copy_threshold=100_000).write_data_stream(pieces(CONTENT))
    assert moto_proxy.operations == COPIED_IN_PARTS
    assert keys(moto, bucket_name) == [KEY]
    assert_nothing_is_left(moto, bucket_name)


# What fails


async def test_without_a_router_nothing_can_be_written(client: Any, s3: S3Client, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="key", Body=b"content")
    storage = S3Storage(client)
    assert await storage.read_data({"bucket": bucket, "key": "key"}) == b"content"
    with pytest.raises(NotImplementedError, match="s3_router"):
        await storage.write_data(b"")
    with pytest.raises(NotImplementedError, match="s3_router"):
        await storage.write_data_stream(pieces(b""))


@pytest.mark.parametrize(
    "options",
    [{"max_readers": 0}, {"max_writers": -1}, {"stream_part_size": 0}, {"stream_part_size": (5 << 30) + 1}],
    ids=str,
)
async def test_bounds_are_checked_at_once(client: Any, options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        S3Storage(client, **options)  # type: ignore[arg-type]


async def test_missing_objects_and_buckets_are_named(storage: S3Storage, client: Any, bucket: str) -> None:
    missing: S3Pointer = {"bucket": bucket, "key": "not there"}
    with pytest.raises(FileNotFoundError, match=f"s3://{bucket}/not%20there"):
        await storage.read_data(missing)
    with pytest.raises(FileNotFoundError, match=f"s3://{bucket}/not%20there"):
        await anext(storage.read_data_stream(missing))
    nowhere = S3Storage(client, simple_s3_router("no-such-bucket"), stream_part_size=PART)
    for write in (nowhere.write_data(b"x"), nowhere.write_data_stream(pieces(CONTENT))):
        with pytest.raises(FileNotFoundError, match="no-such-bucket"):
            await write


async def test_a_body_that_ends_early_is_no_content(
    storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="key", Body=CONTENT)
    pointer: S3Pointer = {"bucket": bucket, "key": "key"}
    s3_proxy.inject(truncate(100_000), operation="GetObject", times=2)
    with pytest.raises(ObjectStoreTransientError):
        await storage.read_data(pointer)
    with pytest.raises(ObjectStoreTransientError):
        async for _ in storage.read_data_stream(pointer):
            pass


async def fail_at(proxy: S3Proxy, step: int, fault: Fault, storage: S3Storage, calls: list[str]) -> bool:
    """Have one of the calls fail. Whether the write succeeded: only if that was repeated, by aiohttp say."""
    proxy.inject(fault, nth=step + 1)
    try:
        await storage.write_data_stream(pieces(CONTENT))
    except ObjectStoreTransientError:
        written = False
    else:
        written = True
    assert proxy.operations[: step + 1] == calls[: step + 1]
    assert written == (proxy.operations == [*calls[: step + 1], *calls[step:]])
    return written


@pytest.mark.parametrize("step", range(len(COPIED)))
@pytest.mark.parametrize("fault", [internal_error, reset, lost_answer])
async def test_a_failure_at_any_call_leaves_nothing(
    storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client, bucket: str, step: int, fault: Callable[[], Fault]
) -> None:
    written = await fail_at(s3_proxy, step, fault(), storage, COPIED)
    assert KEY in keys(s3, bucket) or not written
    assert_nothing_is_left(s3, bucket)


@pytest.mark.parametrize("step", range(len(STREAM), len(COPIED_IN_PARTS)))
@pytest.mark.parametrize("fault", [internal_error, reset, lost_answer])
async def test_a_failure_at_any_call_leaves_nothing_of_a_copy_in_parts(
    kind: str,
    moto: S3Client,
    moto_proxy: S3Proxy,
    bucket_name: str,
    step: int,
    fault: Callable[[], Fault],
) -> None:
    async with client_of(kind, moto_proxy.url) as client:
        storage = storage_of(client, bucket_name, copy_threshold=100_000)
        written = await fail_at(moto_proxy, step, fault(), storage, COPIED_IN_PARTS)
    assert KEY in keys(moto, bucket_name) or not written
    assert_nothing_is_left(moto, bucket_name)


async def cancel_at(proxy: S3Proxy, step: int, storage: S3Storage, natively: bool) -> None:
    """Cancel a write while the server has its request; the answer comes after that."""
    hold = Hold()
    proxy.inject(hold, nth=step + 1)
    scope = anyio.CancelScope()

    async def write() -> None:
        with scope:
            await storage.write_data_stream(pieces(CONTENT))

    task = asyncio.create_task(write())
    await eventually(hold.reached.is_set)
    if natively:
        task.cancel()
    else:
        scope.cancel()
    # The write is told of it before the server answers.
    await asyncio.sleep(0.01)
    hold.release()
    if natively:
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
        assert scope.cancelled_caught or proxy.operations[-1] == "DeleteObject"


@pytest.mark.parametrize("natively", [True, False], ids=["asyncio", "anyio"])
@pytest.mark.parametrize("step", range(len(COPIED)))
async def test_a_cancellation_at_any_call_leaves_nothing(
    storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client, bucket: str, step: int, natively: bool
) -> None:
    await cancel_at(s3_proxy, step, storage, natively)
    assert s3_proxy.operations[: step + 1] == COPIED[: step + 1]
    assert_nothing_is_left(s3, bucket)


@pytest.mark.parametrize("natively", [True, False], ids=["asyncio", "anyio"])
@pytest.mark.parametrize("step", range(len(STREAM), len(COPIED_IN_PARTS)))
async def test_a_cancellation_at_any_call_leaves_nothing_of_a_copy_in_parts(
    kind: str, moto: S3Client, moto_proxy: S3Proxy, bucket_name: str, step: int, natively: bool
) -> None:
    async with client_of(kind, moto_proxy.url) as client:
        storage = storage_of(client, bucket_name, copy_threshold=100_000)
        await cancel_at(moto_proxy, step, storage, natively)
    assert moto_proxy.operations[: step + 1] == COPIED_IN_PARTS[: step + 1]
    assert_nothing_is_left(moto, bucket_name)


async def test_a_cancellation_while_the_stream_makes_wait_leaves_nothing(
    storage: S3Storage, s3: S3Client, s3_proxy: S3Proxy, bucket: str
) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield CONTENT
        await asyncio.Event().wait()

    task = asyncio.create_task(storage.write_data_stream(stalled()))
    await eventually(lambda: "UploadPart" in s3_proxy.operations)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert uploads(s3, bucket) == []
    assert keys(s3, bucket) == []


async def test_a_stream_that_raises_leaves_nothing(storage: S3Storage, s3: S3Client, bucket: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        await storage.write_data_stream(broken())
    assert uploads(s3, bucket) == []
    assert keys(s3, bucket) == []


async def test_an_upload_whose_begin_was_repeated_leaves_none_behind(
    kind: str, s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    s3_proxy.inject(lost_answer(), operation="CreateMultipartUpload")
    retries = {"total_max_attempts": 3, "mode": "standard"}
    async with client_of(kind, s3_proxy.url, retries=retries) as client:
        await storage_of(client, bucket).write_data_stream(pieces(CONTENT))
    assert s3_proxy.operations.count("CreateMultipartUpload") == 2
    assert keys(s3, bucket) == [KEY]
    assert_nothing_is_left(s3, bucket)


@pytest.mark.parametrize("lost", [False, True])
async def test_uploads_are_looked_for_only_where_an_answer_was_lost(
    kind: str, s3_proxy: S3Proxy, bucket: str, lost: bool
) -> None:
    if lost:
        s3_proxy.inject(lost_answer(), operation="CreateMultipartUpload")
    s3_proxy.inject(answer(403, "AccessDenied"), operation="CreateMultipartUpload", nth=1 + lost)
    retries = {"total_max_attempts": 2, "mode": "standard"}
    async with client_of(kind, s3_proxy.url, retries=retries) as client:
        with pytest.raises(PermissionError):
            await storage_of(client, bucket).write_data_stream(pieces(CONTENT))
    assert ("ListMultipartUploads" in s3_proxy.operations) == lost


async def test_a_completion_whose_answer_is_lost_is_found_out_when_it_is_repeated(
    kind: str, moto: S3Client, moto_proxy: S3Proxy, bucket_name: str
) -> None:
    for nth in (1, 3):
        moto_proxy.inject(lost_answer(), operation="CompleteMultipartUpload", nth=nth)
        moto_proxy.inject(answer(404, "NoSuchUpload"), operation="CompleteMultipartUpload", nth=nth + 1)
    moto_proxy.inject(lost_answer(), operation="DeleteObject")
    moto_proxy.inject(answer(404, "NoSuchKey"), operation="DeleteObject", nth=2)
    retries = {"total_max_attempts": 3, "mode": "standard"}
    async with client_of(kind, moto_proxy.url, retries=retries) as client:
        await storage_of(client, bucket_name, copy_threshold=100_000).write_data_stream(pieces(CONTENT))
    assert moto_proxy.operations.count("CompleteMultipartUpload") == 4
    assert moto_proxy.operations.count("DeleteObject") == 2
    assert keys(moto, bucket_name) == [KEY]
    assert_nothing_is_left(moto, bucket_name)


async def test_an_upload_that_is_gone_is_no_success(
    kind: str, moto: S3Client, moto_proxy: S3Proxy, bucket_name: str
) -> None:
    async def replace(exchange: Exchange) -> web.StreamResponse:
        """Another object of the same size takes the place of the one to be made."""
        key = Seen(exchange.request.method, exchange.request.raw_path, exchange.request.headers).path.split("/", 2)[2]
        await asyncio.to_thread(moto.put_object, Bucket=bucket_name, Key=key, Body=CONTENT[::-1])
        return await answer(404, "NoSuchUpload")(exchange)

    for fault in (replace, answer(404, "NoSuchUpload")):
        moto_proxy.clear()
        moto_proxy.inject(fault, operation="CompleteMultipartUpload")
        async with client_of(kind, moto_proxy.url) as client:
            with pytest.raises(ObjectStoreError, match="NoSuchUpload"):
                await storage_of(client, bucket_name).write_data_stream(pieces(CONTENT))
        assert "HeadObject" in moto_proxy.operations
        assert_nothing_is_left(moto, bucket_name)
        assert keys(moto, bucket_name) == []


async def test_uploads_of_others_to_the_final_key_are_left_alone(
    kind: str, moto: S3Client, moto_proxy: S3Proxy, bucket_name: str
) -> None:
    other = moto.create_multipart_upload(Bucket=bucket_name, Key=KEY)["UploadId"]
    moto.upload_part(Bucket=bucket_name, Key=KEY, UploadId=other, PartNumber=1, Body=b"of another")
    moto_proxy.inject(lost_answer(), operation="CreateMultipartUpload", nth=2)
    async with client_of(kind, moto_proxy.url) as client:
        with pytest.raises(ObjectStoreTransientError):
            await storage_of(client, bucket_name, copy_threshold=100_000).write_data_stream(pieces(CONTENT))
    left = moto.list_multipart_uploads(Bucket=bucket_name)["Uploads"]
    assert [upload["UploadId"] for upload in left] == [other]
    assert keys(moto, bucket_name) == []


async def test_a_copied_part_without_an_etag_is_a_failure(client: Any, s3: S3Client, bucket: str) -> None:
    """Which is what rclone's server answers."""
    with pytest.raises(ObjectStoreError, match="without an ETag"):
        await storage_of(client, bucket, copy_threshold=100_000).write_data_stream(pieces(CONTENT))
    assert uploads(s3, bucket) == []
    assert keys(s3, bucket) == []


@pytest.mark.parametrize("there", [CONTENT[:-1], None], ids=["short", "missing"])
async def test_a_copy_that_was_acknowledged_and_not_made_is_a_failure(
    storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client, bucket: str, there: bytes | None
) -> None:
    async def acknowledge(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response(text='<CopyObjectResult><ETag>"0"</ETag></CopyObjectResult>', content_type="text/xml")

    if there is not None:
        s3.put_object(Bucket=bucket, Key=KEY, Body=there)
    s3_proxy.inject(acknowledge, operation="CopyObject")
    with pytest.raises(ObjectStoreError if there else FileNotFoundError):
        await storage.write_data_stream(pieces(CONTENT))
    assert uploads(s3, bucket) == []
    assert keys(s3, bucket) == ([KEY] if there else [])


@pytest.mark.parametrize("there", [b"small", None], ids=["other", "missing"])
async def test_content_that_something_else_acknowledged_is_a_failure(
    storage: S3Storage, s3_proxy: S3Proxy, s3: S3Client, bucket: str, there: bytes | None
) -> None:
    async def page(exchange: Exchange) -> web.StreamResponse:
        await exchange.drain()
        return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")

    content = b"content"
    if there is not None:
        s3.put_object(Bucket=bucket, Key=f"pre/{hashlib.sha256(content).hexdigest()}.bin", Body=there)
    s3_proxy.inject(page, operation="PutObject")
    with pytest.raises(ObjectStoreError if there else FileNotFoundError):
        await storage.write_data(content)


# How much at once


async def test_no_more_requests_at_once_than_allowed(
    client: Any, kind: str, s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="pre/there", Body=b"")
    storage = storage_of(client, bucket, max_readers=2, max_writers=3)
    holds = [Hold() for _ in range(6)]
    for number, hold in enumerate(holds, 1):
        s3_proxy.inject(hold, operation="PutObject", nth=number)
    writes = [asyncio.create_task(storage.write_data(bytes([number]))) for number in range(6)]
    await eventually(lambda: all(hold.reached.is_set() for hold in holds[:3]))
    await asyncio.sleep(0.1)
    assert s3_proxy.operations.count("PutObject") == 3
    for hold in holds:
        hold.release()
    pointers = await asyncio.gather(*writes)
    holds = [Hold() for _ in range(6)]
    s3_proxy.clear()
    for number, hold in enumerate(holds, 1):
        s3_proxy.inject(hold, operation="GetObject", nth=number)
    reads = [asyncio.create_task(storage.read_data(pointer)) for pointer in pointers]
    await eventually(lambda: all(hold.reached.is_set() for hold in holds[:2]))
    await asyncio.sleep(0.1)
    assert s3_proxy.operations.count("GetObject") == 2
    for hold in holds:
        hold.release()
    assert await asyncio.gather(*reads) == [bytes([number]) for number in range(6)]


async def test_a_client_of_aiobotocore_needs_no_threads(s3_proxy: S3Proxy, bucket: str) -> None:
    async with client_of("aiobotocore", s3_proxy.url) as client:
        storage = storage_of(client, bucket)
        pointer = await storage.write_data_stream(pieces(CONTENT))
        assert await storage.read_data(pointer) == CONTENT
        assert not [thread for thread in threading.enumerate() if thread.name == "AnyIO worker thread"]


async def test_an_asynchronous_client_of_another_kind_is_awaited(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    """Whatever it is: what its methods return is looked at, and they say nothing of themselves."""
    async with client_of("aiobotocore", s3_proxy.url) as client:
        storage = storage_of(Wrapped(client), bucket)
        pointer = await storage.write_data_stream(pieces(CONTENT))
        assert s3.get_object(Bucket=bucket, Key=pointer["key"])["Body"].read() == CONTENT


class Wrapped:
    """Hands on what it is asked for."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
