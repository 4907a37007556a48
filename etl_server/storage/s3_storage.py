"""Content in S3 under keys that its hash says."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ..errors import ObjectStoreError
from .multipart import LARGEST_PART, PART_SIZE, PartCutter, part_size_of
from .retry import RetryPolicy
from .routers import Digest, S3Pointer, S3Router, Tags
from .s3_calls import S3Calls, finish, uri_of
from .s3_uploads import MultipartUpload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from types_aiobotocore_s3 import S3Client as AioS3Client

OCTETS = "application/octet-stream"
READ_SIZE = 1 << 20
"""Bytes of a stream that are read in one go, at the most."""
COPY_PART_SIZE = 256 << 20
"""Bytes of a part of a copy, where nothing calls for more."""
_HASHED_AT_ONCE = 1 << 20

logger = logging.getLogger(__name__)


class S3Storage:
    """Writes content to where a router says, by the content's hash, and reads it; on one event loop at a time.

    It repeats nothing but removing what a write that failed has left: that a request is tried again is the client's
    setting. A write that is cancelled waits for its request, removes what there is to remove, and raises then.

    Every method that asks S3 may raise:
        PermissionError: the credentials are wrong, or do not allow it.
        ObjectStoreTransientError: throttled, 5xx, reset, timed out, cut off.
        ObjectStoreError: refused for another reason, or answered with what cannot be right.
    """

    def __init__(
        self,
        s3_client: S3Client | AioS3Client,
        s3_router: S3Router | None = None,
        max_readers: int | None = None,
        max_writers: int | None = None,
        stream_part_size: int = PART_SIZE,
        *,
        copy_threshold: int = LARGEST_PART,
        policy: RetryPolicy | None = None,
    ) -> None:
        """
        Args:
            s3_client: of boto3, which is called in threads, or of aiobotocore, which is not. It is not closed.
            s3_router: says where content goes; None: nothing can be written.
            max_readers: requests at once that read, each in a thread where the client needs one; default: the
                client's `max_pool_connections`.
            max_writers: the same of those that write.
            stream_part_size: bytes of the first parts of a stream; S3 wants at least 5 MiB. A stream takes up twice as
                much memory, and a little more from part to part: twice that after 600 MiB, of parts of 8 MiB.
            copy_threshold: bytes beyond which an object is copied in parts; S3 copies 5 GiB in one go.
            policy: how often and how long it is tried to remove what a write has left.

        Raises:
            ValueError: a number is out of its bounds.
        """
        connections: int = s3_client.meta.config.max_pool_connections  # type: ignore[attr-defined]
        self._readers = S3Calls(s3_client, _at_least_1("max_readers", max_readers, connections), writes=False)
        self._writers = S3Calls(s3_client, _at_least_1("max_writers", max_writers, connections), writes=True)
        self._router = s3_router
        self._part_size = _part("stream_part_size", stream_part_size)
        self._copy_threshold = _part("copy_threshold", copy_threshold)
        self._policy = policy or RetryPolicy()

    async def write_data(
        self, data: bytes, content_type: str = OCTETS, *, content_encoding: str | None = None, tags: Tags | None = None
    ) -> S3Pointer:
        """Store content, unless it is there: under a key that holds its hash, in its size.

        Args:
            data: the content.
            content_type: its MIME type.
            content_encoding: how it is compressed already, as in HTTP's `Content-Encoding`.
            tags: become the object's; those of content that is there stay as they are.

        Returns:
            Where it is.

        Raises:
            NotImplementedError: there is no router.
            FileNotFoundError: there is no such bucket.
        """
        router = self._writing()
        content = _Content(content_type, content_encoding)
        await content.update(data)
        return await self._put(router, data, content.digest(), tags or {})

    async def write_data_stream(
        self,
        stream: AsyncIterable[bytes],
        content_type: str = OCTETS,
        *,
        content_encoding: str | None = None,
        tags: Tags | None = None,
    ) -> S3Pointer:
        """Store the content that a stream yields, in pieces of any size; the rest is as in `write_data`.

        A stream of more than one part goes to a temporary key first, and is copied within S3 when its hash is known.
        An exception that comes out of the stream is passed on. It leaves nothing behind, and neither does any other
        failure or cancellation; what even then cannot be removed, repeatedly, is logged.
        """
        router = self._writing()
        content = _Content(content_type, content_encoding)
        async with aclosing(self._parts(stream, content)) as parts:
            first = await anext(parts, b"")
            second = await anext(parts, None)
            if second is None:
                return await self._put(router, first, content.digest(), tags or {})
            temporary = _temporary(router, content.digest_to_come(), tags or {})
            upload = MultipartUpload(self._writers, temporary, self._policy, alone=True)
            try:
                await upload.create(**_properties(content.digest(), {}))
                await upload.add(first)
                await upload.add(second)
                del first, second
                async for part in parts:
                    await upload.add(part)
                await upload.complete()
                digest = content.digest()
                final = router(digest, tags or {}, temp=False)
                if not await self._holds(final, digest):
                    await self._copy(temporary, final, digest, tags or {})
            except BaseException:
                await finish(self._give_up(upload, temporary))
                raise
            await finish(self._clear(upload, temporary))
            return final

    async def read_data(self, pointer: S3Pointer) -> bytes:
        """The content that is there.

        Raises:
            FileNotFoundError: there is none.
        """
        async with self._open(pointer) as body:
            data: bytes = await self._readers.run(body.read, pointer)
            return data

    async def read_data_stream(self, pointer: S3Pointer) -> AsyncGenerator[bytes, None]:
        """The content that is there, in pieces of up to 1 MiB. It ends where the content ends, and never before.

        Raises:
            FileNotFoundError: there is none.
        """
        async with self._open(pointer) as body:
            while piece := await self._readers.run(lambda: body.read(READ_SIZE), pointer):
                yield piece

    @asynccontextmanager
    async def _open(self, pointer: S3Pointer) -> AsyncIterator[Any]:
        answers: list[Any] = []
        try:
            await self._readers.ask("get_object", pointer, answers.append)
            yield answers[0]["Body"]
        finally:
            for answer in answers:
                answer["Body"].close()

    def _writing(self) -> S3Router:
        if self._router is None:
            raise NotImplementedError("This S3Storage is read-only: expected s3_router=…")
        return self._router

    async def _parts(self, stream: AsyncIterable[bytes], content: _Content) -> AsyncGenerator[bytes, None]:
        cutter = PartCutter(self._part_size)
        async for piece in stream:
            await content.update(piece)
            for part in cutter.feed(piece):
                yield part
        if last := cutter.rest():
            yield last

    async def _put(self, router: S3Router, data: bytes, digest: Digest, tags: Tags) -> S3Pointer:
        pointer = router(digest, tags, temp=False)
        if not await self._holds(pointer, digest):
            answer = await self._writers.ask("put_object", pointer, Body=data, **_properties(digest, tags))
            if "ETag" not in answer:  # AIStore may tell none, as may what is no S3
                await self._check_size(pointer, len(data))
        return pointer

    async def _holds(self, pointer: S3Pointer, digest: Digest) -> bool:
        """Whether this content is there. Under a key without its hash there may be another of the same size."""
        if digest["content_hash"] not in pointer["key"]:
            return False
        try:
            return await self._size(pointer) == digest["content_size"]
        except (FileNotFoundError, PermissionError):  # denied is what S3 says to those who may not list a bucket
            return False

    async def _size(self, pointer: S3Pointer) -> int:
        size: int = (await self._readers.ask("head_object", pointer))["ContentLength"]
        return size

    async def _check_size(self, pointer: S3Pointer, size: int) -> None:
        """Raise ObjectStoreError where what was written has another size."""
        found = await self._size(pointer)
        if found != size:
            raise ObjectStoreError(f"{uri_of(pointer)}: S3 made {found} bytes of {size}")

    async def _copy(self, source: S3Pointer, goal: S3Pointer, digest: Digest, tags: Tags) -> None:
        size = digest["content_size"]
        if size > self._copy_threshold:
            await self._copy_in_parts(source, goal, digest, tags)
        else:
            await self._writers.ask(
                "copy_object",
                goal,
                CopySource={"Bucket": source["bucket"], "Key": source["key"]},
                MetadataDirective="REPLACE",
                TaggingDirective="REPLACE",
                **_properties(digest, tags),
            )
        await self._check_size(goal, size)

    async def _copy_in_parts(self, source: S3Pointer, goal: S3Pointer, digest: Digest, tags: Tags) -> None:
        size = digest["content_size"]
        part_size = part_size_of(size, min(COPY_PART_SIZE, self._copy_threshold))
        upload = MultipartUpload(self._writers, goal, self._policy, alone=False)
        try:
            await upload.create(**_properties(digest, tags))
            for start in range(0, size, part_size):
                await upload.add_copy(source, start, min(start + part_size, size))
            await upload.complete()
        finally:
            await finish(upload.take_back())

    async def _give_up(self, upload: MultipartUpload, temporary: S3Pointer) -> None:
        try:
            await self._clear(upload, temporary)
        except Exception as error:
            logger.warning("Could not remove %s: %s", uri_of(temporary), error)

    async def _clear(self, upload: MultipartUpload, temporary: S3Pointer) -> None:
        """Remove the temporary object, and what there is of it else."""
        await upload.take_back()
        try:
            await self._policy.call_async(lambda: self._writers.ask("delete_object", temporary))
        except FileNotFoundError:  # the answer of some servers where there is nothing, or nothing any more
            pass


class _Content:
    """Content that is on its way."""

    def __init__(self, content_type: str, content_encoding: str | None) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._type = content_type
        self._encoding = content_encoding

    async def update(self, piece: bytes) -> None:
        """More of it has come. A large piece does not keep the loop from other work."""
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), _HASHED_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._hash.update(view[start : start + _HASHED_AT_ONCE])
        self._size += len(view)

    def digest(self) -> Digest:
        """That of what has come so far."""
        return {**self.digest_to_come(), "content_hash": self._hash.hexdigest(), "content_size": self._size}

    def digest_to_come(self) -> Digest:
        """That of content of which only the type is known."""
        return {
            "content_hash": "",
            "content_hash_algorithm": "sha256",
            "content_size": 0,
            "content_type": self._type,
            "content_encoding": self._encoding,
        }


def _temporary(router: S3Router, digest: Digest, tags: Tags) -> S3Pointer:
    """A place that is nobody else's."""
    pointer = router(digest, tags, temp=True)
    if router(digest, tags, temp=True) == pointer:
        # What is there, and may be of somebody else, would be overwritten and removed.
        raise ValueError(f"s3_router gave {uri_of(pointer)} twice with temp=True: expected another place every time")
    return pointer


def _properties(digest: Digest, tags: Tags) -> dict[str, Any]:
    properties: dict[str, Any] = {"ContentType": digest["content_type"]}
    if digest["content_encoding"] is not None:
        properties["ContentEncoding"] = digest["content_encoding"]
    if tags:
        properties["Tagging"] = urlencode(tags)
    return properties


def _at_least_1(name: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")
    return default if value is None else value


def _part(name: str, size: int) -> int:
    if not 1 <= size <= LARGEST_PART:
        raise ValueError(f"{name}={size}: expected 1 to {LARGEST_PART} bytes")
    return size
