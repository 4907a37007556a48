"""Bytes on their way: between the event loop's sockets and whoever takes them, on the loop or in a worker thread.

Everything here is bounded: who is too fast is paused, down to the sender's socket.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from ..errors import BodyTooLargeError

HIGH_WATER = 256 * 1024
"""Bytes that wait for a consumer before the sender is paused."""
THREAD_HIGH_WATER = 4 * HIGH_WATER
"""The same, where the consumer is a thread: to stop and go costs more there."""
THREAD_LOW_WATER = HIGH_WATER
READ_BUFFER = 64 * 1024
SMALL = 64 * 1024
"""Bytes up to which what is sent is copied behind its head, to leave in one piece."""
LARGE = 64 * 1024
"""Bytes from which a body of known length is read into its own place."""

Batch = list[bytes]
"""Pieces of a body that came together; never empty, save to say that the body is at its end."""


class BatchStream:
    """A body that comes as somebody makes it. Whoever takes it closes it, at its end or before."""

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nobody takes any more. May be called more than once."""
        raise NotImplementedError


class ReadBuffer:
    """What a process's transports read into when a body has no place of its own.

    One serves all connections of an event loop: what has come is taken out of it before the next read.
    """

    def __init__(self) -> None:
        self.whole = memoryview(bytearray(HIGH_WATER))
        self.small = self.whole[:READ_BUFFER]
        """For heads, so that little of a large body comes with them."""


class Inflow:
    """A body as it comes: a transport feeds it, one consumer takes it. Belongs to the event loop."""

    __slots__ = (
        "_chunks",
        "_demand",
        "_error",
        "_pause",
        "_paused",
        "_resume",
        "_sink",
        "_spool",
        "_waiter",
        "_whole",
        "ended",
        "room",
        "size",
    )

    def __init__(
        self, pause: Callable[[], None], resume: Callable[[], None], demand: Callable[[], None] | None = None
    ) -> None:
        """`pause` and `resume` stop and start the sender; `demand` is called once, when a body is first asked for."""
        self._pause = pause
        self._resume = resume
        self._demand = demand
        self._chunks: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._paused = False
        self._sink: ThreadReader | None = None
        self._spool: io.BytesIO | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._whole: float = 0
        self.room: memoryview | None = None
        """Where the transport may read the next bytes of the body into; it then calls `filled`, and not `feed`."""
        self.ended = False
        """Whether the body came in whole; part of it may still wait here."""
        self.size = 0
        """Bytes that wait here."""

    # The transport's side

    def feed(self, data: bytes) -> None:
        if self._sink is not None:
            if self._sink.feed(data):
                self._pause_sender()
            return
        if self.room is not None:
            self.room[: len(data)] = data
            self.filled(len(data))
            return
        self.size += len(data)
        if self._whole:
            if self._spool is not None:
                self._spool.write(data)
            else:
                self._chunks.append(data)
                self._begin_spool()
            if self.size > self._whole:
                self._wake()
            return
        self._chunks.append(data)
        if self.size > HIGH_WATER:
            self._pause_sender()
        if self._waiter is not None:
            self._wake()

    def filled(self, count: int) -> bool:
        """`count` bytes have come into `room`; whether that was the last of them, and the body has ended."""
        self.size += count
        self.room = self.room[count:] if self.room is not None else None
        if self.room:
            return False
        self.room = None
        self.finish()
        return True

    def finish(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._sink is not None:
            self._sink.finish()
            self._sink = None
        if self._waiter is not None:
            self._wake()

    def fail(self, error: BaseException) -> None:
        """The rest will not come. What did come can still be taken; then `error` is raised."""
        if self.ended or self._error is not None:
            return
        self._error = error
        if self._sink is not None:
            self._sink.fail(error)
        self._wake()

    @property
    def failure(self) -> BaseException | None:
        """Why the rest of the body will not come."""
        return self._error

    @property
    def paused(self) -> bool:
        """Whether the sender is stopped."""
        return self._paused

    # The consumer's side

    async def receive(self) -> Batch:
        """What has come since the last call, waiting for something; empty at the end of the body."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                return []
            self._ask()
            await self._wait()
        batch = list(self._chunks)
        self._chunks.clear()
        self.size = 0
        self._resume_sender()
        return batch

    async def read(self, limit: int | None = None, length: int | None = None) -> bytes:
        """The whole body, of which `length` bytes in all are announced, where that is known.

        Raises:
            BodyTooLargeError: it is larger than `limit` bytes.
        """
        self._whole = float("inf") if limit is None else limit
        if not self.ended:
            if length is not None and length > max(self.size, LARGE):
                self._make_room(length)
            self._ask()
            self._resume_sender()
        while not self.ended and self.size <= self._whole:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self.take_whole(limit)

    def take_whole(self, limit: int | None = None) -> bytes:
        """The body, which has ended.

        Raises:
            BodyTooLargeError: it is larger than `limit` bytes.
        """
        if limit is not None and self.size > limit:
            raise BodyTooLargeError.beyond(limit)
        self.size = 0
        if self._spool is None and len(self._chunks) == 1:
            return self._chunks.popleft()
        self._begin_spool()
        spool, self._spool = self._spool, None
        if spool is not None:
            return spool.getvalue()
        return self._chunks.popleft() if self._chunks else b""

    def thread_reader(self, limit: int | None = None) -> ThreadReader:
        """Give the body to a worker thread; from now on it can be taken there only."""
        sink = ThreadReader(asyncio.get_running_loop(), self._resume_sender, limit)
        full = False
        while self._chunks:
            full = sink.feed(self._chunks.popleft())
        self.size = 0
        if self._error is not None:
            sink.fail(self._error)
        elif self.ended:
            sink.finish()
        if not self.ended:
            self._sink = sink
        self._ask()
        if full:
            self._pause_sender()
        else:
            self._resume_sender()
        return sink

    def _make_room(self, length: int) -> None:
        """Have the rest of the body come to where it will stay. What a BytesIO gives away at the end is no copy."""
        self._spool = io.BytesIO(bytes(length))
        room = self._spool.getbuffer()
        start = 0
        while self._chunks:
            chunk = self._chunks.popleft()
            room[start : start + len(chunk)] = chunk
            start += len(chunk)
        self.room = room[start:]

    def _begin_spool(self) -> None:
        """Put more than one piece together. A BytesIO gives its buffer away uncopied: a body is in memory once."""
        if len(self._chunks) > 1 and self._spool is None:
            self._spool = io.BytesIO()
            while self._chunks:
                self._spool.write(self._chunks.popleft())

    def _ask(self) -> None:
        demand, self._demand = self._demand, None
        if demand is not None:
            demand()

    def _pause_sender(self) -> None:
        if not self._paused and not self.ended:
            self._paused = True
            self._pause()

    def _resume_sender(self) -> None:
        if self._paused:
            self._paused = False
            self._resume()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ThreadReader(io.RawIOBase):
    """The raw reader of a body for a worker thread: fed on the event loop, read and closed in the thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, resume: Callable[[], None], limit: int | None) -> None:
        super().__init__()
        self._loop = loop
        self._resume = resume
        self._left = float("inf") if limit is None else limit
        self._limit = limit
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._offset = 0
        self._ended = False
        self._error: BaseException | None = None
        self._full = False
        self.taken = 0
        """Bytes that have come."""

    # The event loop's side

    def feed(self, data: bytes) -> bool:
        """Take a piece; True asks the sender to pause, until `resume` is called."""
        with self._changed:
            self._left -= len(data)
            self.taken += len(data)
            if self._left < 0 and self._error is None:
                self._error = BodyTooLargeError.beyond(self._limit)
            self._chunks.append(data)
            self._size += len(data)
            self._changed.notify()
            self._full = self._size > THREAD_HIGH_WATER
            return self._full

    def finish(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify()

    @property
    def failure(self) -> BaseException | None:
        """Why the rest of the body cannot be read."""
        return self._error

    # The thread's side

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the buffer protocol of io
        with self._changed:
            while not self._chunks and not self._ended and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._chunks:
                return 0
            chunk = self._chunks[0]
            count = min(len(buffer), len(chunk) - self._offset)
            buffer[:count] = chunk[self._offset : self._offset + count] if count < len(chunk) else chunk
            self._offset += count
            if self._offset == len(chunk):
                self._chunks.popleft()
                self._offset = 0
            self._size -= count
            if self._full and self._size <= THREAD_LOW_WATER:
                self._full = False
                self._loop.call_soon_threadsafe(self._resume)
            return count


def buffered(raw: io.RawIOBase) -> io.BufferedReader:
    """A raw reader with all that a `BinaryIO` promises: `read(n)` of exactly n bytes, `read1`, `readline`, `peek`."""
    return io.BufferedReader(raw, READ_BUFFER)


class Outflow:
    """What a worker thread produces, for one consumer on the event loop; one wake-up serves many pieces."""

    def __init__(self, loop: asyncio.AbstractEventLoop, high_water: int) -> None:
        self._loop = loop
        self._high_water = high_water
        self._changed = threading.Condition()
        self._batch: Batch = []
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._cancelled = False
        self._waiter: asyncio.Future[None] | None = None

    # The thread's side

    def put(self, piece: bytes) -> None:
        """Hand a piece over; waits while the consumer is behind.

        Raises:
            BrokenPipeError: nobody takes it any more.
        """
        with self._changed:
            while self._size >= self._high_water and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise BrokenPipeError("the receiver of this object is gone")
            self._batch.append(piece)
            self._size += len(piece)
            self._wake_consumer()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more comes: the end, or `error`."""
        with self._changed:
            self._ended = True
            self._error = error
            self._wake_consumer()

    # The event loop's side

    async def take(self) -> tuple[Batch, bool]:
        """What is there, waiting for something, and whether that was the last of it."""
        while True:
            with self._changed:
                if self._batch or self._ended:
                    if self._error is not None:
                        raise self._error
                    batch, self._batch = self._batch, []
                    self._size = 0
                    self._changed.notify()
                    return batch, self._ended
                self._waiter = waiter = self._loop.create_future()
            await waiter

    def cancel(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._cancelled = True
            self._changed.notify()

    def _wake_consumer(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._loop.call_soon_threadsafe(_set, waiter)


class AsyncReader:
    """The object as an `async` `transform_stream` reads it."""

    def __init__(self, receive: Callable[[], Awaitable[Batch]]) -> None:
        self._receive = receive
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self.failure: Exception | None = None
        """Why the rest of the object cannot be read."""
        self.taken = 0
        """Bytes that have come."""

    async def read(self, size: int = -1) -> bytes:
        """The next `size` bytes; fewer only at the end of the object. Negative: all that is left."""
        parts: list[bytes] = []
        wanted = float("inf") if size < 0 else size
        while wanted > 0 and await self._fill():
            chunk = self._chunks.popleft()
            if len(chunk) > wanted:
                keep = int(wanted)
                self._chunks.appendleft(chunk[keep:])
                chunk = chunk[:keep]
            parts.append(chunk)
            wanted -= len(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The object's pieces as they come, of any size."""
        while await self._fill():
            yield self._chunks.popleft()

    async def _fill(self) -> bool:
        while not self._chunks and not self._ended:
            try:
                batch = await self._receive()
            except Exception as error:
                self.failure = error
                raise
            self._ended = not batch
            self.taken += sum(map(len, batch))
            self._chunks.extend(chunk for chunk in batch if chunk)
        return bool(self._chunks)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
