"""Where an object comes from that is in S3: read on the event loop, also for a transform that runs in a thread."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import BodyTooLargeError, UpstreamUnreachableError
from .admission import Lease
from .flow import AsyncReader, Batch, ThreadReader, buffered
from .source import PIECE
from .store_errors import errors_of_stores

if TYPE_CHECKING:
    from ..storage.s3_async import AsyncS3Object, AsyncS3Reader


class S3Source:
    """An object of a bucket. It can be read again, as long as the bucket has it."""

    repeatable = True
    whole = None
    length: int | None = None

    def __init__(self, reader: AsyncS3Reader, name: str, limit: int | None, lease: Lease) -> None:
        """`limit`: bytes beyond which an object is refused with `BodyTooLargeError`."""
        self._store = reader
        self._name = name
        self._limit = limit
        self._lease = lease
        self._feed: _Feed | None = None
        self._stored: AsyncS3Object | None = None
        self._async_reader: AsyncReader | None = None

    @property
    def failure(self) -> BaseException | None:
        reader = self._feed.reader if self._feed else self._async_reader
        return reader.failure if reader else None

    def read_now(self) -> bytes | None:
        return None

    async def read(self) -> bytes:
        stored = await self.open()
        try:
            await self._lease.take(stored.size)
            first = await self.next_piece(stored)
            if len(first) == stored.size:
                return first
            whole = io.BytesIO(first)
            whole.seek(0, io.SEEK_END)
            while piece := await self.next_piece(stored):
                whole.write(piece)
            return whole.getvalue()
        finally:
            stored.close()

    def opener(self) -> Callable[[], io.BufferedReader]:
        self._feed = _Feed(self)
        return self._feed.open

    async def async_reader(self) -> AsyncReader:
        stored = await self.open()

        async def receive() -> Batch:
            piece = await self.next_piece(stored)
            return [piece] if piece else []

        self._async_reader = AsyncReader(receive)
        return self._async_reader

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()
        if self._stored is not None:
            self._stored.close()

    async def open(self) -> AsyncS3Object:
        """The object, at its first byte. Whoever asked closes it."""
        with errors_of_stores(self._name):
            stored = await self._store.open_object(self._name)
        if self._limit is not None and stored.size > self._limit:
            stored.close()
            raise BodyTooLargeError.beyond(self._limit)
        self.length = stored.size
        self._stored = stored  # whoever is to take it may be cancelled before its first step
        return stored

    async def next_piece(self, stored: AsyncS3Object) -> bytes:
        """What comes next of the object, none at its end."""
        with errors_of_stores(self._name):
            return await stored.read(PIECE)


class _Feed:
    """An object on its way from the event loop to a worker thread."""

    def __init__(self, source: S3Source) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.reader = ThreadReader(self._loop, self._room.set, None)

    def open(self) -> io.BufferedReader:
        """The object's reader, once the object is known to be there. For the thread; the rest is the loop's."""
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()
        return buffered(self.reader)

    async def _begin(self) -> None:
        if self._closed:
            raise UpstreamUnreachableError("The object is no longer read")
        self._task = asyncio.current_task()
        stored = await self._source.open()
        self._task = self._loop.create_task(self._feed(stored))

    async def _feed(self, stored: AsyncS3Object) -> None:
        try:
            while piece := await self._source.next_piece(stored):
                if self.reader.feed(piece):
                    self._room.clear()
                    await self._room.wait()
            self.reader.finish()
        except Exception as error:
            self.reader.fail(error)
        finally:
            stored.close()

    def close(self) -> None:
        """Nobody reads any more. A thread that still does, or waits for the object, is to end."""
        self._closed = True
        self.reader.fail(UpstreamUnreachableError("The object is no longer read"))
        if self._task is not None:
            self._task.cancel()
