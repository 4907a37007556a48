"""Objects of S3 as an event loop reads them: over aiobotocore, without a thread."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from ..errors import ObjectStoreError, ObjectStoreTransientError
from ..wire.names import encode_object_path
from .base import check_name, checked_prefix
from .reading import answered_stop, range_header
from .redirects import follow_redirects
from .retry import RetryPolicy
from .s3_config import S3Options
from .s3_errors import RangeNotThereError, translated

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CONNECTIONS = 256


class AsyncS3Reader:
    """Reads the objects of a bucket whose keys begin with a prefix: one client, which belongs to one event loop."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region_name: str | None = None,
        profile_name: str | None = None,
        addressing_style: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """The arguments are those of `S3ObjectStore`."""
        self._bucket = bucket
        self._prefix = checked_prefix(bucket, prefix)
        self._options = S3Options(endpoint_url, region_name, profile_name, addressing_style)
        self._policy = policy or RetryPolicy()
        self._opened = AsyncExitStack()

    async def open(self, connections: int = CONNECTIONS) -> None:
        """Make the client, with so many connections at the most: a request that finds none waits for one.

        Raises:
            botocore.exceptions.BotoCoreError, ValueError: the options do not make a client.
        """
        options = self._options
        making = AioSession(profile=options.profile_name).create_client(
            "s3",
            region_name=options.region_name,
            endpoint_url=options.endpoint_url,
            config=AioConfig(**options.config(connections)),
        )
        self._client: S3Client = follow_redirects(await self._opened.enter_async_context(making))

    async def close(self) -> None:
        """Close the connections. Nothing is to be read any more."""
        await self._opened.aclose()

    async def open_object(self, object_name: str) -> AsyncS3Object:
        """An object at its first byte, to be read and closed.

        Raises:
            FileNotFoundError: there is no such object.
            PermissionError, ObjectStoreTransientError, ObjectStoreError: as of an `ObjectStore`.
            ValueError: S3 can have no object of this name.
        """
        check_name(object_name)
        stored = AsyncS3Object(self._client, self._bucket, self._prefix + object_name, self._policy)
        try:
            await self._policy.call_async(stored.open)
        except BaseException:
            stored.close()
            raise
        return stored


class AsyncS3Object:
    """An object that is read from its beginning to its end, and never a part of one, or of two.

    A read that fails is tried again on a new connection, from where it was.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, policy: RetryPolicy) -> None:
        self._client = client
        self._place: Any = {"Bucket": bucket, "Key": key}
        self._uri = f"s3://{bucket}/{encode_object_path(key)}"
        self._policy = policy
        self._body: Any = None
        self._closed = False
        self._etag: str | None = None
        self._position = 0
        self.size = 0
        """Bytes."""

    async def open(self) -> None:
        """Ask for the object, once."""
        await self._ask(first=True)

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end of the object, and never before.

        Raises:
            PermissionError, ObjectStoreTransientError, ObjectStoreError: as of an `ObjectStore`.
        """
        if self._position >= self.size:
            return b""
        data = await self._policy.call_async(lambda: self._read(size))
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the connection, unless it was given back with the object's last byte. A read that waits fails."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    async def _read(self, size: int) -> bytes:
        if self._closed:
            raise self._abandoned()
        try:
            if self._body is None:
                await self._ask(first=False)
            with translated(self._uri):
                data: bytes = await self._body.read(min(size, self.size - self._position))
            if not data:
                raise ObjectStoreTransientError(f"{self._uri} ended {self.size - self._position} bytes early")
        except BaseException:
            self._drop()
            raise
        return data

    async def _ask(self, *, first: bool) -> None:
        # In a task of its own: aiobotocore sets context variables and resets them, and whoever runs a coroutine's first
        # step outside of a task does so in another context than the rest of it.
        await asyncio.get_running_loop().create_task(self._get(first=first))

    async def _get(self, *, first: bool) -> None:
        end = None if first else self.size
        wanted: Any = range_header(self._position, end)
        try:
            with translated(self._uri):
                answer = await self._client.get_object(**self._place, **wanted)
        except RangeNotThereError:
            if first:
                raise
            raise self._replaced() from None
        self._body = answer["Body"]
        if self._closed:  # meanwhile
            self._drop()
            raise self._abandoned()
        stop = answered_stop(self._uri, self._position, end, answer.get("ContentRange", ""), answer["ContentLength"])
        if first:
            self._etag, self.size = answer.get("ETag"), stop
        elif (answer.get("ETag"), stop) != (self._etag, self.size):
            raise self._replaced()

    def _replaced(self) -> ObjectStoreError:
        return ObjectStoreError(f"{self._uri} was replaced while it was read")

    def _abandoned(self) -> ObjectStoreError:
        return ObjectStoreError(f"{self._uri} is no longer read")
