"""Where an object comes from: a request's body, the target, a URL, or a local file.

A source is read in one of three ways: whole (`read`), in a worker thread (`opener`), or on the event loop
(`async_reader`).
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import BinaryIO, Protocol

import requests

from ..errors import BodyTooLargeError, UpstreamUnreachableError
from .admission import Lease
from .clients import ERROR_BODY_LIMIT, ResponseRawReader, open_stream, upstream_error
from .exchange import OK
from .files import LocalFile, LocalFiles, ObjectFile
from .flow import AsyncReader, Batch, Inflow, ThreadReader, buffered
from .outbound import Headers, Outbound, Response
from .threads import WorkerThreads

PIECE = 256 * 1024
"""Bytes that an async reader takes from a blocking source at a time."""


class Source(Protocol):
    """An object that can be read once, or, where it is `repeatable`, again."""

    @property
    def repeatable(self) -> bool:
        """Whether it can be read again from its beginning."""

    @property
    def whole(self) -> bytes | None:
        """The object, where it is in memory already."""

    @property
    def length(self) -> int | None:
        """Bytes of the object, where that is known by now."""

    @property
    def failure(self) -> BaseException | None:
        """What went wrong while it was read, even if the reader made nothing of it."""

    def read_now(self) -> bytes | None:
        """The whole object, where that takes no waiting."""

    async def read(self) -> bytes:
        """The whole object."""

    def opener(self) -> Callable[[], BinaryIO]:
        """What a worker thread calls to get a reader, which it closes."""

    async def async_reader(self) -> AsyncReader:
        """A reader for the event loop."""

    def close(self) -> None:
        """Nobody reads any more. May be called more than once, and while a worker thread still reads."""


class BodySource:
    """The body of the request itself."""

    def __init__(self, body: Inflow, length: int | None, limit: int | None, lease: Lease) -> None:
        """Raises `BodyTooLargeError` where `length`, if known, is over the `limit`."""
        if limit is not None and (length or 0) > limit:
            raise BodyTooLargeError.beyond(limit)
        self._body = body
        self._length = length
        self._lease = lease
        self._limit = limit
        self._whole: bytes | None = None
        self._reader: ThreadReader | None = None
        self._async_reader: AsyncReader | None = None

    @property
    def repeatable(self) -> bool:
        return self._whole is not None

    @property
    def whole(self) -> bytes | None:
        return self._whole

    @property
    def length(self) -> int | None:
        if self._length is None and self._whole is not None:
            return len(self._whole)
        reader = self._reader or self._async_reader
        return reader.taken if self._length is None and reader is not None else self._length

    @property
    def failure(self) -> BaseException | None:
        return self._body.failure or _failure(self._reader) or _failure(self._async_reader)

    def read_now(self) -> bytes | None:
        body = self._body
        if self._whole is None and body.ended:
            self._lease.add(body.size)
            self._whole = body.take_whole(self._limit)
        return self._whole

    async def read(self) -> bytes:
        whole = self.read_now()
        if whole is None:
            whole = self._whole = await _read_admitted(self._body, self._length, self._limit, self._lease)
        return whole

    async def read_if_here(self, limit: int) -> None:
        """Take the body if it has come in whole and has at most `limit` bytes: then it can be read again."""
        if self._body.ended and self._body.size <= limit:
            await self.read()

    def opener(self) -> Callable[[], BinaryIO]:
        if self._whole is not None:
            whole = self._whole
            return lambda: io.BytesIO(whole)
        self._reader = reader = self._body.thread_reader(self._limit)
        return lambda: buffered(reader)

    async def async_reader(self) -> AsyncReader:
        if self._whole is not None:
            return AsyncReader(_once(self._whole))
        self._async_reader = AsyncReader(_limited(self._body.receive, self._limit))
        return self._async_reader

    def close(self) -> None:
        if self._reader is not None and not self._body.ended:
            self._reader.fail(UpstreamUnreachableError("The object is no longer read"))


class BytesSource:
    """An object in memory."""

    repeatable = True
    failure = None

    def __init__(self, data: bytes) -> None:
        self.whole = data
        self.length = len(data)

    def read_now(self) -> bytes:
        return self.whole

    async def read(self) -> bytes:
        return self.whole

    def opener(self) -> Callable[[], BinaryIO]:
        return lambda: io.BytesIO(self.whole)

    async def async_reader(self) -> AsyncReader:
        return AsyncReader(_once(self.whole))

    def close(self) -> None:
        pass


class BlockingSource(ABC):
    """An object that only a worker thread can read."""

    repeatable = True
    whole = None
    length: int | None = None
    _opened: io.BufferedReader | None = None
    _reader: ObjectFile | ResponseRawReader | None = None
    _async_reader: AsyncReader | None = None

    def __init__(self, threads: WorkerThreads, limit: int | None, lease: Lease) -> None:
        self._threads = threads
        self._limit = limit
        self._lease = lease

    @abstractmethod
    def open(self) -> io.BufferedReader:
        """A reader of the object from its beginning."""

    @abstractmethod
    def size(self, reader: io.BufferedReader) -> int | None:
        """Bytes that a reader from `open` will give, where that is known."""

    @property
    def failure(self) -> BaseException | None:
        return _failure(self._reader) or _failure(self._async_reader)

    def read_now(self) -> bytes | None:
        return None

    async def read(self) -> bytes:
        try:
            read = await self._threads.run(self._read_small)
            if isinstance(read, bytes):
                self._lease.add(len(read))
                return read
            self._opened, size = read
            if size is not None:
                await self._lease.take(size)
                return await self._threads.run(self._opened.read)
            whole = io.BytesIO()
            while piece := await self._threads.run(self._opened.read1, PIECE):
                await self._lease.grow(len(piece))
                whole.write(piece)
            return whole.getvalue()
        finally:
            self.close()

    def opener(self) -> Callable[[], io.BufferedReader]:
        return self.open

    async def async_reader(self) -> AsyncReader:
        self._opened = opened = await self._threads.run(self.open)

        async def receive() -> Batch:
            piece = await self._threads.run(opened.read1, PIECE)
            return [piece] if piece else []

        self._async_reader = AsyncReader(receive)
        return self._async_reader

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            # In a thread, because a reader's close waits for a read that another thread may be in.
            self._threads.spawn(opened.close)

    def _read_small(self) -> bytes | tuple[io.BufferedReader, int | None]:
        """The object, if it is small; else a reader, and how many bytes that will give."""
        reader = self.open()
        size = self.size(reader)
        if size is None or size > PIECE:
            return reader, size
        with reader:
            return reader.read()


class FileSource(BlockingSource):
    """A local file that the target named. Finding it does not wait: the target has just looked it up itself."""

    def __init__(self, fqn: str, files: LocalFiles, threads: WorkerThreads, limit: int | None, lease: Lease) -> None:
        super().__init__(threads, limit, lease)
        self._fqn = fqn
        self._files = files

    def path(self) -> str:
        """Where the file really is; it is there and may be read."""
        with self._find() as file:
            return file.path

    def read_now(self) -> bytes | None:
        with self._find() as file:
            data = file.read_if_cached() if file.size <= PIECE else None
        if data is not None:
            self._lease.add(len(data))
        return data

    async def read(self) -> bytes:
        data = self.read_now()
        return data if data is not None else await super().read()

    def open(self) -> io.BufferedReader:
        with self._find() as file:
            self._reader = reader = file.open()
            return buffered(reader)

    def size(self, reader: io.BufferedReader) -> int | None:
        return os.fstat(reader.fileno()).st_size

    def _find(self) -> LocalFile:
        file = self._files.find(self._fqn)
        if self._limit is not None and file.size > self._limit:
            file.close()
            raise BodyTooLargeError.beyond(self._limit)
        self.length = file.size
        return file


class UrlSource(BlockingSource):
    """What any URL answers to a GET; redirects are followed."""

    redirects = True
    _closed = False

    def __init__(
        self,
        url: str,
        session: Callable[[], requests.Session],
        threads: WorkerThreads,
        timeout: float,
        limit: int | None,
        lease: Lease,
    ) -> None:
        super().__init__(threads, limit, lease)
        self._url = url
        self._session = session
        self._timeout = timeout

    def opener(self) -> Callable[[], io.BufferedReader]:
        self._closed = False
        return super().opener()

    def close(self) -> None:
        self._closed = True
        if isinstance(self._reader, ResponseRawReader):
            self._reader.abort()
        super().close()

    def open(self) -> io.BufferedReader:
        self._reader = reader = open_stream(
            self._session(), self._url, self._timeout, redirects=self.redirects, limit=self._limit
        )
        self.length = reader.length
        if self._closed:
            reader.abort()
        return buffered(reader)

    def size(self, reader: io.BufferedReader) -> int | None:
        return self._reader.length if isinstance(self._reader, ResponseRawReader) else None


class TargetSource(UrlSource):
    """An object that the target answers to a GET. Only a synchronous stream needs a thread for it."""

    redirects = False
    _response: Response | None = None

    def __init__(
        self,
        url: str,
        headers: Headers,
        outbound: Outbound,
        session: Callable[[], requests.Session],
        threads: WorkerThreads,
        timeout: float,
        limit: int | None,
        lease: Lease,
        begun: Response | BaseException | None = None,
    ) -> None:
        """`begun`: what came of asking for it, where that was done before."""
        super().__init__(url, session, threads, timeout, limit, lease)
        self._headers = headers
        self._outbound = outbound
        self._begun = begun

    async def read(self) -> bytes:
        response = await self._get()
        try:
            return await _read_admitted(response.body, response.length, self._limit, self._lease)
        finally:
            response.close()

    async def async_reader(self) -> AsyncReader:
        self._response = await self._get()
        self.length = self._response.length
        self._async_reader = AsyncReader(_limited(self._response.receive, self._limit))
        return self._async_reader

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        super().close()

    async def _get(self) -> Response:
        response, self._begun = self._begun, None
        if isinstance(response, BaseException):
            raise response
        if response is None:
            response = await self._outbound.request("GET", self._url, self._headers)
        if response.status == OK:
            return response
        try:
            content = await response.read_start(ERROR_BODY_LIMIT)
        finally:
            response.close()
        raise upstream_error(response.status, content, response.headers.get("content-type", ""))


def _failure(reader: ThreadReader | AsyncReader | ObjectFile | ResponseRawReader | None) -> BaseException | None:
    return None if reader is None else reader.failure


async def _read_admitted(body: Inflow, length: int | None, limit: int | None, lease: Lease) -> bytes:
    """A whole body, which is not read before there is memory for it."""
    if limit is not None and (length or 0) > limit:
        raise BodyTooLargeError.beyond(limit)
    if length is not None:
        if not lease.take_now(length):
            await lease.take(length)
        return body.take_whole(limit) if body.ended else await body.read(limit, length)
    whole = io.BytesIO()
    while batch := await body.receive():
        for piece in batch:
            whole.write(piece)
        if limit is not None and whole.tell() > limit:
            raise BodyTooLargeError.beyond(limit)
        await lease.grow(sum(map(len, batch)))
    return whole.getvalue()


def _once(data: bytes) -> Callable[[], Awaitable[Batch]]:
    pieces = [data] if data else []

    async def receive() -> Batch:
        batch = pieces[:]
        pieces.clear()
        return batch

    return receive


def _limited(receive: Callable[[], Awaitable[Batch]], limit: int | None) -> Callable[[], Awaitable[Batch]]:
    if limit is None:
        return receive
    taken = 0

    async def receive_limited() -> Batch:
        nonlocal taken
        batch = await receive()
        taken += sum(map(len, batch))
        if taken > limit:
            raise BodyTooLargeError.beyond(limit)
        return batch

    return receive_limited
