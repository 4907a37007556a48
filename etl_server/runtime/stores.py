"""The object stores of a process: where GET reads from, and where the results of PUT go.

S3 is read on the event loop, everything else in threads; what is written goes through threads.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from ..config import Settings, redact
from ..errors import BodyTooLargeError, ConfigError, UpstreamUnreachableError
from ..storage.base import COPY_SIZE, ObjectStore
from ..storage.local import LocalObjectStore
from ..storage.opening import open_async_reader, open_store, options_told
from .admission import Lease
from .flow import AsyncReader, Batch, BatchStream, buffered
from .s3_source import S3Source
from .source import BlockingSource, Source
from .store_errors import errors_of_stores
from .threads import WorkerThreads

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..storage.s3_async import AsyncS3Reader

CLOSE_TIMEOUT = 5.0
"""Seconds that a stopping process waits for what its stores still do."""


class Stores:
    """One client for each of the two stores that the settings name. Belongs to the event loop."""

    def __init__(self, settings: Settings, threads: WorkerThreads) -> None:
        """`threads` are those that read."""
        self._settings = settings
        self._threads = threads
        self._open: list[ObjectStore] = []
        self._reader: AsyncS3Reader | None = None
        """What reads the source, where that is S3."""
        # Not the threads of transforms: those would hold all places, each waiting for who takes what it makes.
        self._writers = WorkerThreads()

    async def open(self) -> None:
        """Make the clients. The source's directory must be there; the sink's comes into being.

        Raises:
            ConfigError: one line: the setting, its value, what was expected.
        """
        settings = self._settings
        try:
            if settings.source:
                self._reader = await self._open_reader(settings.source)
                if self._reader is None:
                    self._source = await self._open_store("ETL_SOURCE", settings.source)
            if settings.sink:
                self._sink = await self._open_store("ETL_SINK", settings.sink)
        except BaseException:
            await self.close()
            raise

    async def _open_reader(self, uri: str) -> AsyncS3Reader | None:
        with _told("ETL_SOURCE"), options_told(uri):
            reader = await self._threads.run(open_async_reader, uri)
            if reader is not None:
                await reader.open(self._settings.max_connections)
            return reader

    async def _open_store(self, variable: str, uri: str) -> ObjectStore:
        store = await self._threads.run(_open, variable, uri)
        self._open.append(store)
        return store

    def source_of(self, name: str, lease: Lease) -> Source:
        """An object of the source."""
        if self._reader is not None:
            return S3Source(self._reader, name, self._settings.max_body, lease)
        return StoreSource(self._source, name, self._threads, self._settings.max_body, lease)

    async def put(self, name: str, content: bytes | BatchStream, content_type: str, lease: Lease) -> int:
        """Store an object in the sink, all of it or nothing; returns its size in bytes.

        Raises:
            ETLError: it cannot be stored; of a stream, what broke it off.
        """
        if isinstance(content, bytes):
            return await self._writers.run(self._put, name, content, content_type)
        pieces = _Pieces(content, self._sink.stream_memory, lease)
        try:
            return await self._writers.run(self._put, name, pieces, content_type)
        finally:
            pieces.abandon()
            await content.aclose()

    async def close(self) -> None:
        """Close the clients."""
        closing = [asyncio.ensure_future(self._threads.run(store.close)) for store in self._open]
        if self._reader is not None:
            closing.append(asyncio.ensure_future(self._reader.close()))
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
        self._writers.stop()

    def _put(self, name: str, data: bytes | _Pieces, content_type: str) -> int:
        with errors_of_stores(name):
            return self._sink.put_object(name, data, content_type=content_type).size


def check_stores(settings: Settings) -> None:
    """Raises `ConfigError` as `Stores.open`. Not to be called on an event loop."""
    if settings.source or settings.sink:
        asyncio.run(_check(settings))


async def _check(settings: Settings) -> None:
    threads = WorkerThreads()
    stores = Stores(settings, threads)
    try:
        await stores.open()
        await stores.close()
    finally:
        threads.stop()


def _open(variable: str, uri: str) -> ObjectStore:
    with _told(variable):
        store = open_store(uri)
    if isinstance(store, LocalObjectStore):
        root = store.root
        if not root.is_dir() and (variable == "ETL_SOURCE" or root.exists()):
            raise ConfigError(redact(f"{variable}={uri}: expected a directory"))
    return store


@contextmanager
def _told(variable: str) -> Iterator[None]:
    """What keeps a store from being opened, as an error of the setting."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(redact(f"{variable}: {error}")) from None


class StoreSource(BlockingSource):
    """An object of a store. It can be read again, as long as the store has it."""

    def __init__(self, store: ObjectStore, name: str, threads: WorkerThreads, limit: int | None, lease: Lease) -> None:
        super().__init__(threads, limit, lease)
        self._store = store
        self._name = name
        self._stored: _StoredObject | None = None
        self._closed = False

    @property
    def failure(self) -> BaseException | None:
        return (self._stored.failure if self._stored else None) or super().failure

    def open(self) -> io.BufferedReader:
        with errors_of_stores(self._name):
            stored = _StoredObject(self._store.open_object(self._name), self._name)
        if self._limit is not None and stored.size > self._limit:
            stored.close()
            raise BodyTooLargeError.beyond(self._limit)
        self._stored = stored
        self.length = stored.size
        stored.abandoned = self._closed
        return buffered(stored)

    def opener(self) -> Callable[[], io.BufferedReader]:
        self._closed = False
        return super().opener()

    async def async_reader(self) -> AsyncReader:
        self._closed = False
        return await super().async_reader()

    def size(self, reader: io.BufferedReader) -> int | None:
        return self._stored.size if self._stored else None

    def close(self) -> None:
        self._closed = True
        if self._stored is not None:
            self._stored.abandoned = True
        super().close()


class _StoredObject(io.RawIOBase):
    """The raw reader of an object, which remembers that reading failed, whatever its user makes of that."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._name = name
        self.size = stream.seek(0, os.SEEK_END)
        """Bytes."""
        stream.seek(0)
        self.failure: Exception | None = None
        """Why the rest of the object cannot be read."""
        self.abandoned = False
        """Whether nobody reads any more: then a thread that still does is to end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        whole = io.BytesIO()
        while piece := self._read(COPY_SIZE):
            whole.write(piece)
        return whole.getvalue()

    def _read(self, size: int) -> bytes:
        try:
            if self.abandoned:
                raise UpstreamUnreachableError("The object is no longer read")
            with errors_of_stores(self._name):
                return self._stream.read(size)
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Pieces:
    """A stream of the event loop, for a thread to take. It ends in an error once nobody wants it any more."""

    def __init__(self, stream: BatchStream, memory: Callable[[int | None], int], lease: Lease) -> None:
        """`memory`: what storing it takes up, as `ObjectStore.stream_memory` says; counted by the `lease`."""
        self._stream = stream
        self._memory = memory
        self._lease = lease
        self._size = 0
        self._counted = memory(None)
        lease.add(self._counted)
        self._loop = asyncio.get_running_loop()
        self._taking: asyncio.Task[Batch] | None = None
        self._abandoned = False

    def abandon(self) -> None:
        """The object must not be stored. Before the stream is closed, lest that looks like its end."""
        self._abandoned = True
        if self._taking is not None:
            self._taking.cancel()

    def __iter__(self) -> Iterator[bytes]:
        while batch := asyncio.run_coroutine_threadsafe(self._take(), self._loop).result():
            yield from batch

    async def _take(self) -> Batch:
        if self._abandoned:
            raise UpstreamUnreachableError("The object is no longer wanted")
        self._taking = asyncio.current_task()
        try:
            batch = await anext(self._stream)
        except StopAsyncIteration:
            return []
        finally:
            self._taking = None
        self._size += sum(map(len, batch))
        more = self._memory(self._size) - self._counted
        if more > 0:
            self._lease.add(more)
            self._counted += more
        return batch
