"""The object stores of a process: where GET reads from, and where the results of PUT go."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from ..config import Settings
from ..errors import (
    BadRequestError,
    BodyTooLargeError,
    ConfigError,
    FileForbiddenError,
    ObjectMissingError,
    ObjectStoreError,
    UpstreamUnreachableError,
)
from ..storage.base import COPY_SIZE, ObjectStore
from ..storage.local import LocalObjectStore
from ..storage.opening import open_store
from .admission import Lease
from .flow import AsyncReader, Batch, BatchStream, buffered
from .source import BlockingSource
from .threads import WorkerThreads

if TYPE_CHECKING:
    from typing_extensions import Buffer

CLOSE_TIMEOUT = 5.0
"""Seconds that a stopping process waits for what its stores still do."""


class Stores:
    """One client for each of the two stores that the settings name. Belongs to the event loop."""

    def __init__(self, settings: Settings, threads: WorkerThreads) -> None:
        """`threads` are those that read."""
        self._settings = settings
        self._threads = threads
        self._open: list[ObjectStore] = []

    async def open(self) -> None:
        """Make the clients.

        Raises:
            ConfigError: as `open_stores`.
        """
        if self._settings.source or self._settings.sink:
            source, sink = await self._threads.run(open_stores, self._settings)
            if source is not None:
                self._source = source
                self._open.append(source)
            if sink is not None:
                self._sink = sink
                self._open.append(sink)
            # Not the threads of transforms: those would hold all places, each waiting for who takes what it makes.
            self._writers = WorkerThreads()

    def source_of(self, name: str, lease: Lease) -> StoreSource:
        """An object of the source."""
        return StoreSource(self._source, name, self._threads, self._settings.max_body, lease)

    async def put(self, name: str, content: bytes | BatchStream, content_type: str, lease: Lease) -> int:
        """Store an object in the sink, all of it or nothing; returns its size in bytes.

        Raises:
            ETLError: it cannot be stored; of a stream, what broke it off.
        """
        if isinstance(content, bytes):
            return await self._writers.run(self._put, name, content, content_type)
        lease.add(self._sink.stream_memory)
        pieces = _Pieces(content)
        try:
            return await self._writers.run(self._put, name, pieces, content_type)
        finally:
            pieces.abandon()
            await content.aclose()

    async def close(self) -> None:
        """Close the clients."""
        if self._open:
            closing = [asyncio.ensure_future(self._threads.run(store.close)) for store in self._open]
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
            self._writers.stop()

    def _put(self, name: str, data: bytes | _Pieces, content_type: str) -> int:
        with _errors_of_stores(name):
            return self._sink.put_object(name, data, content_type=content_type).size


def open_stores(settings: Settings) -> tuple[ObjectStore | None, ObjectStore | None]:
    """The source and the sink, where there are any. The source's directory must be there; the sink's comes into being.

    Raises:
        ConfigError: one line: the setting, its value, what was expected.
    """
    source = _open("ETL_SOURCE", settings.source)
    try:
        return source, _open("ETL_SINK", settings.sink)
    except BaseException:
        if source is not None:
            source.close()
        raise


def check_stores(settings: Settings) -> None:
    """Raises `ConfigError` as `open_stores`."""
    for store in open_stores(settings):
        if store is not None:
            store.close()


def _open(variable: str, uri: str) -> ObjectStore | None:
    if not uri:
        return None
    try:
        store = open_store(uri)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{variable}={uri}: expected {error.name} to be installed: pip install 'etl-server[s3]'"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{variable}: {error}") from None
    except Exception as error:  # what the store's own library has to say of an option
        why = " ".join(str(error).split())
        raise ConfigError(f"{variable}={uri}: expected options that make a client: {why}") from None
    if isinstance(store, LocalObjectStore):
        root = store.root
        if not root.is_dir() and (variable == "ETL_SOURCE" or root.exists()):
            raise ConfigError(f"{variable}={uri}: expected a directory")
    return store


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
        with _errors_of_stores(self._name):
            stored = _StoredObject(self._store.open_object(self._name), self._name)
        if self._limit is not None and stored.size > self._limit:
            stored.close()
            raise BodyTooLargeError.beyond(self._limit)
        self._stored = stored
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
            with _errors_of_stores(self._name):
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

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
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
            return await anext(self._stream)
        except StopAsyncIteration:
            return []
        finally:
            self._taking = None


@contextmanager
def _errors_of_stores(name: str) -> Iterator[None]:
    """What a store raises, as the error to answer with."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"Object not found: {error.filename or name}") from None
    except PermissionError as error:
        raise FileForbiddenError(f"The store does not allow it: {error}") from None
    except ValueError as error:
        raise BadRequestError(f"The store has no object of this name: {error}") from None
    except OSError as error:
        raise ObjectStoreError(f"{name}: {error}") from error
