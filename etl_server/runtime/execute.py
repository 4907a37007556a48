"""Run the user's transform: on the event loop while it takes microseconds, else in a worker thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import perf_counter, perf_counter_ns
from typing import Any, BinaryIO, TypeVar

from ..errors import ETLError, TransformError
from ..server import ETLServer
from .counts import UNCOUNTED, Tally, Way
from .flow import Batch, BatchStream, Outflow
from .source import BodySource, Source
from .threads import WorkerThreads, tame

T = TypeVar("T")

INLINE_SECONDS = 0.0002
"""A transform that takes longer than this does not belong on the event loop."""
INLINE_RUNS = 16
"""Runs in a row that have to be that fast before one is run there."""
CANCEL_TIMEOUT = 1.0
"""Seconds that a coroutine which took too long has to end once it is told to."""
MOST_PACES = 1024
"""Different arguments whose speed is remembered."""
RETURNED = "transform() returned"
INLINE_BYTES = 256 * 1024
"""Bytes, in or out, up to which a stream may run on the event loop."""


class Executor:
    """Runs one instance's transform, within its `max_concurrency`."""

    def __init__(self, server: ETLServer, threads: WorkerThreads) -> None:
        self.server = server
        self.threads = threads
        self.timeout = server.settings.object_timeout
        self.failed = threading.local()
        """`seconds`: how long the last call of the transform took that raised in this thread."""
        self._paces: dict[str, Pace] = {}
        self._slots = asyncio.Semaphore(server.max_concurrency) if server.max_concurrency else None
        self._execution = server.execution
        self._streams = server.streams
        max_body = server.settings.max_body
        self._max_body = float("inf") if max_body is None else max_body
        # A plain function around an async one shows itself by what `transform` returns. A stream's reader has to be
        # chosen before it is called, so there one looks inside.
        self.is_async = _is_async(inspect.unwrap(server.transform_stream) if server.streams else server.transform)

    async def transform(self, data: bytes | str, path: str, etl_args: str, way: Way | None = None) -> bytes:
        """The transformed object. `way` is told how long it took.

        Raises:
            TransformError: `transform` raised, took longer than `ETL_OBJECT_TIMEOUT`, or returned no bytes.
        """
        if self._slots is not None:
            await self._slots.acquire()
        try:
            if self.is_async or self._runs_inline(None if isinstance(data, str) else len(data), etl_args):
                times = way.times if way is not None else UNCOUNTED
                try:
                    result = self.call(data, path, etl_args, times)
                    if type(result) is bytes:
                        return result
                    if inspect.isawaitable(result):
                        result = await self._finish(result, times)
                finally:
                    self.release()
            else:
                times = way.thread_times if way is not None else UNCOUNTED
                result = await self.limit(
                    self.threads.run(self.call, data, path, etl_args, times, on_exit=self.release)
                )
                if inspect.isawaitable(result):
                    await self._acquire()
                    try:
                        result = await self._finish(result, times)
                    finally:
                        self.release()
            return _as_bytes(result, RETURNED)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            raise transform_error(error) from error

    def is_quick(self, size: int) -> bool:
        """Whether the transform of an object of `size` bytes, without arguments, may run here and now."""
        if self.is_async or self._slots is not None or self._streams or size > self._max_body:
            return False
        return self._runs_inline(size, "")

    async def finish(self, result: Any, way: Way) -> bytes:
        """The object, of what `call` returned.

        Raises:
            TransformError: as `transform`.
        """
        try:
            return _as_bytes(await self._finish(result, way.times) if inspect.isawaitable(result) else result, RETURNED)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            raise transform_error(error) from error

    async def _finish(self, result: Awaitable[Any], times: Tally) -> Any:
        """Wait for what an asynchronous transform returned."""
        if not self.is_async:
            # A plain function around an async one: from now on it is known for what it is, and starts in a task.
            self.is_async = True
            result = asyncio.ensure_future(result)
        started = perf_counter_ns()
        try:
            return await self.limit(_tamed(result))
        finally:
            times.add(perf_counter_ns() - started)

    async def stream(self, source: Source, path: str, etl_args: str) -> bytes | BatchStream:
        """The transformed object: whole where it is finished at once, else a stream whose first batch is at hand.

        Raises:
            TransformError: `transform_stream` raised, took too long, or yielded no bytes, before its first batch.
        """
        if isinstance(source, BodySource) and not self.is_async:
            await source.read_if_here(INLINE_BYTES)
        await self._acquire()
        stream: _Stream
        if self.is_async:
            stream = _AsyncStream(self, source, path, etl_args)
        else:
            begun: _Begun | None = None
            if source.whole is not None and self._runs_inline(len(source.whole), etl_args):
                try:
                    begun = self._begin_inline(source.whole, path, etl_args)
                except BaseException as error:
                    self.release()
                    raise transform_error(error) from error
                if begun.finished:
                    self.release()
                    return _join(begun.batch)
            stream = _ThreadStream(self, source, path, etl_args, begun)
        try:
            whole = await stream.start()
        except BaseException:
            await stream.aclose()
            raise
        if whole is not None:
            await stream.aclose()
            return whole
        return stream

    async def limit(self, work: Awaitable[T]) -> T:
        """Wait for a transform, at most `ETL_OBJECT_TIMEOUT`."""
        if self.timeout is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task,), timeout=self.timeout)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=CANCEL_TIMEOUT)
        if task.cancelled() or not task.done():
            raise TransformError(f"no result within ETL_OBJECT_TIMEOUT={self.timeout:g} s")
        return task.result()

    async def _acquire(self) -> None:
        if self._slots is not None:
            await self._slots.acquire()

    def release(self) -> None:
        """A call of the transform has ended."""
        if self._slots is not None:
            self._slots.release()

    def pace(self, etl_args: str) -> Pace:
        """What is known of the transform's speed with these arguments: others may make it do something else."""
        pace = self._paces.get(etl_args)
        if pace is None:
            if len(self._paces) >= MOST_PACES:
                self._paces.clear()
            pace = self._paces[etl_args] = Pace()
        return pace

    def _runs_inline(self, size: int | None, etl_args: str) -> bool:
        """`size`: bytes of the input; None for a path, which stands for a file that is still to be read."""
        if self._execution == "auto":
            # What runs on the loop cannot be timed out.
            pace = self._paces.get(etl_args)
            return pace is not None and size is not None and self.timeout is None and pace.is_fast(size)
        return self._execution == "inline"

    def call(self, data: bytes | str, path: str, etl_args: str, times: Tally) -> Any:
        """What the user's `transform` returns, or an `Exception` of whatever it raised; its time is taken."""
        result = None
        started = perf_counter_ns()
        try:
            result = self.server.transform(data, path, etl_args)
            return result
        except BaseException as error:
            self.failed.seconds = (perf_counter_ns() - started) * 1e-9
            tamed = tame(error)
            if tamed is error:
                raise
            raise tamed from error
        finally:
            elapsed = perf_counter_ns() - started
            pace = self._paces.get(etl_args) or self.pace(etl_args)
            pace.record(len(data), elapsed * 1e-9)
            if type(result) is bytes or not inspect.isawaitable(result):
                times.add(elapsed)

    def _begin_inline(self, whole: bytes, path: str, etl_args: str) -> _Begun:
        """Run a stream on the loop as far as that is quick; a thread takes over what turns out not to be."""
        started = perf_counter()
        reader = io.BytesIO(whole)
        iterator = _iterate(self.server.transform_stream(reader, path, etl_args))
        batch: Batch = []
        size = 0
        for piece in iterator:
            batch.append(_as_bytes(piece, "transform_stream() yielded"))
            size += len(batch[-1])
            if self._execution == "auto" and (size > INLINE_BYTES or perf_counter() - started > INLINE_SECONDS):
                self.pace(etl_args).record(len(whole), INLINE_SECONDS * 2)
                return _Begun(iterator, reader, batch, finished=False)
        self.pace(etl_args).record(len(whole), perf_counter() - started)
        return _Begun(iterator, reader, batch, finished=True)


class Pace:
    """What is known of a transform's speed, by the size of its input (powers of two)."""

    def __init__(self) -> None:
        self._fast_runs = [0] * 65
        self._needed = [INLINE_RUNS] * 65

    def is_fast(self, size: int) -> bool:
        """Whether an input of `size` bytes has been taking microseconds."""
        kind = size.bit_length()
        return self._fast_runs[kind] >= self._needed[kind]

    def record(self, size: int, seconds: float) -> None:
        """Learn from a run. One that was slow ends the trust at once; each time, it takes longer to win back."""
        kind = size.bit_length()
        if seconds <= INLINE_SECONDS:
            self._fast_runs[kind] += 1
            return
        if self._fast_runs[kind] >= self._needed[kind]:
            # A rare slow run may be the machine's fault and not the transform's.
            rare = self._fast_runs[kind] > 1000 * INLINE_RUNS
            self._needed[kind] = INLINE_RUNS if rare else min(self._needed[kind] * 4, 10_000)
        self._fast_runs[kind] = 0


class _Begun:
    """A stream that was begun on the loop."""

    __slots__ = ("batch", "finished", "iterator", "reader")

    def __init__(self, iterator: Iterator[Any], reader: BinaryIO, batch: Batch, *, finished: bool) -> None:
        self.iterator = iterator
        self.reader = reader
        self.batch = batch
        self.finished = finished


class _Stream(BatchStream):
    """A running `transform_stream`."""

    def __init__(self, executor: Executor, source: Source) -> None:
        self._executor = executor
        self._source = source
        self._first: Batch | None = None
        self._taker: asyncio.Task[Any] | None = None
        """Who waits for a batch."""

    async def start(self) -> bytes | None:
        """Wait for the first batch; the whole output, if that was all of it."""
        batch, ended = await self._take()
        if ended:
            return _join(batch)
        self._first = batch
        return None

    async def __anext__(self) -> Batch:
        if self._first is not None:
            batch, self._first = self._first, None
            return batch
        batch, _ = await self._take()
        if not batch:
            raise StopAsyncIteration
        return batch

    async def _take(self) -> tuple[Batch, bool]:
        """The next batch, and whether it is known to be the last; an empty one is."""
        self._taker = asyncio.current_task()
        try:
            return await self._executor.limit(self._next())
        except Exception as error:
            raise transform_error(error) from error
        finally:
            self._taker = None

    async def _next(self) -> tuple[Batch, bool]:
        raise NotImplementedError


class _ThreadStream(_Stream):
    """A synchronous `transform_stream`, running in a worker thread."""

    def __init__(self, executor: Executor, source: Source, path: str, etl_args: str, begun: _Begun | None) -> None:
        super().__init__(executor, source)
        loop = asyncio.get_running_loop()
        self._outflow = Outflow(loop, executor.server.settings.direct_put_chunk_size)
        self._ended = False
        opener = source.opener() if begun is None else None
        self._job: asyncio.Task[None] | None = loop.create_task(
            executor.threads.run(self._run, opener, path, etl_args, begun, on_exit=executor.release)
        )

    async def _next(self) -> tuple[Batch, bool]:
        if self._ended:
            return [], True
        batch, self._ended = await self._outflow.take()
        return batch, self._ended

    async def aclose(self) -> None:
        self._ended = True
        self._outflow.cancel()
        self._source.close()
        # It refers to the stream: both would stay until the next garbage collection.
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def _run(self, opener: Callable[[], BinaryIO] | None, path: str, etl_args: str, begun: _Begun | None) -> None:
        started = perf_counter()
        error: BaseException | None = None
        try:
            if begun is not None:
                self._produce(begun.reader, begun.iterator, begun.batch)
            elif opener is not None:
                reader = opener()
                try:
                    iterator = _iterate(self._executor.server.transform_stream(reader, path, etl_args))
                    self._produce(reader, iterator, [])
                finally:
                    reader.close()
            # A reader that failed makes the output worthless, even if the transform made do with what it got.
            error = self._source.failure
        except BaseException as raised:
            error = tame(raised)
        if self._source.whole is not None:
            self._executor.pace(etl_args).record(len(self._source.whole), perf_counter() - started)
        self._outflow.finish(error)

    def _produce(self, reader: BinaryIO, iterator: Iterator[Any], batch: Batch) -> None:
        try:
            for piece in batch:
                self._outflow.put(piece)
            for piece in iterator:
                data = _as_bytes(piece, "transform_stream() yielded")
                if data:
                    self._outflow.put(data)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


class _AsyncStream(_Stream):
    """An asynchronous `transform_stream`, running on the event loop."""

    def __init__(self, executor: Executor, source: Source, path: str, etl_args: str) -> None:
        super().__init__(executor, source)
        self._arguments = (path, etl_args)
        self._iterator: AsyncIterator[Any] | None = None
        self._closed = False

    async def _next(self) -> tuple[Batch, bool]:
        if self._iterator is None:
            reader = await self._source.async_reader()
            made: Any = self._executor.server.transform_stream(reader, *self._arguments)
            if inspect.isawaitable(made):
                made = await _tamed(made)
            if not hasattr(made, "__aiter__"):
                made = _async_iterator(_iterate(made))
            self._iterator = aiter(made)
        while True:
            try:
                piece = await _tamed(anext(self._iterator))
            except StopAsyncIteration:
                if self._source.failure is not None:
                    raise self._source.failure from None
                return [], True
            data = _as_bytes(piece, "transform_stream() yielded")
            if data:
                return [data], False

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._taker is not None and self._taker is not asyncio.current_task():
            # A generator that runs cannot be closed.
            self._taker.cancel()
            await asyncio.wait((self._taker,), timeout=CANCEL_TIMEOUT)
        try:
            close = getattr(self._iterator, "aclose", None)
            if close is not None:
                await close()
        except Exception as error:
            self._executor.server.logger.warning("transform_stream() failed as it was ended: %s", type(error).__name__)
        finally:
            self._source.close()
            self._executor.release()


async def _tamed(work: Awaitable[T]) -> T:
    """What the user's coroutine returns. What it raises is told apart from what is thrown into it to end it."""
    try:
        return await work
    except (StopAsyncIteration, GeneratorExit):
        raise
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        raise tame(error) from error
    except BaseException as error:
        raise tame(error) from error


def _is_being_cancelled() -> bool:
    """Whether the current task was told to end; before Python 3.11 nobody can tell, so that it counts as told."""
    task = asyncio.current_task()
    return task is None or not hasattr(task, "cancelling") or task.cancelling() > 0


def transform_error(error: BaseException) -> ETLError:
    """What a transform raised, as the error to answer with."""
    if isinstance(error, ETLError) and isinstance(getattr(error, "detail", None), str) and 400 <= error.status <= 599:
        return error
    return TransformError(str(tame(error)) or type(error).__name__)


async def _async_iterator(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    for piece in iterator:
        yield piece


def _iterate(made: Any) -> Iterator[Any]:
    if hasattr(made, "__aiter__") or inspect.isawaitable(made):
        raise TypeError("transform_stream() is asynchronous, but not declared so: write 'async def'")
    if isinstance(made, (bytes, bytearray, memoryview, str)) or not hasattr(made, "__iter__"):
        raise TypeError(f"transform_stream() returned {type(made).__name__}, expected an iterator of bytes")
    return iter(made)


def _as_bytes(result: Any, what: str) -> bytes:
    if type(result) is bytes:
        return result
    # A copy: whoever made a mutable buffer may go on using it.
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    raise TypeError(f"{what} {type(result).__name__}, expected bytes, bytearray or memoryview")


def _join(batch: Batch) -> bytes:
    return batch[0] if len(batch) == 1 else b"".join(batch)


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, a partial or a callable is declared `async`, as a coroutine or as a generator."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
