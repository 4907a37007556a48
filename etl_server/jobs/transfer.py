"""The way of one object in a job: read, transform, write."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import tempfile
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..config import Settings
from ..errors import ETLError, ObjectStoreTransientError, TransformError
from ..runtime.execute import Executor, transform_error
from ..runtime.flow import AsyncReader, Batch, BatchStream, buffered
from ..runtime.threads import WorkerThreads
from ..server import ETLServer
from ..storage import ObjectInfo, ObjectStore, Owner, Unsettled, open_store
from ..wire.names import printable
from .claims import claim
from .copies import Copies
from .ledger import Outcome, Task
from .naming import Naming
from .plan import output_identity

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

PIECE = 256 * 1024
"""Bytes that an async reader takes at a time."""
READ_MEMORY = 4 * 1024 * 1024
"""Bytes that an object takes up while it is read as a stream and transformed, at the most."""
LARGE = 4 * 1024 * 1024
"""Bytes from which an output may be stored in parts."""
LONGEST_ERROR = 1000
"""Characters of an error that are kept."""

Mark = Callable[[float], None]
"""Told since when the transform is running, and with 0 that it is not."""


class Transfer:
    """What a worker does to objects. Made on the event loop; `run` is called in any thread but the loop's."""

    def __init__(
        self,
        server: ETLServer,
        source_uri: str,
        sink_uri: str | None,
        owner: Owner,
        naming: Naming,
        etl_args: str,
        budget: Budget,
    ) -> None:
        """`sink_uri`: None throws the outputs away."""
        self.server = server
        self._settings: Settings = server.settings
        self._source: ObjectStore = open_store(source_uri)
        self._sink = None if sink_uri is None else open_store(sink_uri)
        if self._sink is not None:
            self._sink.claim(owner)
        self._owner = owner
        self._unsettled: dict[int, Unsettled] = {}
        """Outputs by their tasks, before they are sure to last."""
        self._naming = naming
        self._etl_args = etl_args
        self._by_path = self._settings.direct_fqn and not server.streams
        self._copies = Copies(owner)
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._executor = Executor(server, WorkerThreads())
        self._executor.timeout = None  # a job ends what hangs from outside
        # What has to be on the event loop goes through the executor, as in a server; all else needs no detour.
        self._direct = not server.streams and not self._executor.is_async and server.execution != "inline"
        limit = server.max_concurrency
        # Taken before the time of a transform begins, so there is always room for it in the executor.
        self._slots: AbstractContextManager[object] = threading.BoundedSemaphore(limit) if limit else nullcontext()

    def close(self) -> None:
        """Close the stores."""
        self._copies.close()
        self._source.close()
        if self._sink is not None:
            self._sink.close()

    def run(self, task: Task, mark: Mark) -> Outcome:
        """Do all of a task but `settle`. Whatever goes wrong is in what it returns."""
        streams = self.server.streams
        started = time.perf_counter()
        with self._budget.grant(self._stream_memory(task.size) if streams else 2 * task.size) as grant:
            try:
                outcome = self._stream(task, mark, grant) if streams else self._whole(task, mark)
                return outcome._replace(seconds=time.perf_counter() - started)
            except BaseException as error:
                seconds = time.perf_counter() - started
                return Outcome(
                    task.id,
                    self._told(error),
                    bytes_in=task.size,
                    seconds=seconds,
                    store_failed=is_store_failure(error),
                )

    def _stream_memory(self, size: int) -> int:
        """Bytes that an object takes up which is streamed, and of which so many are to be stored."""
        return READ_MEMORY + (self._sink.stream_memory(size) if self._sink is not None else 0)

    def settle(self, outcomes: list[Outcome]) -> list[Outcome]:
        """What came of tasks once their outputs are durable: before that, none counts as done."""
        unsettled = [(index, self._unsettled.pop(each.id, None)) for index, each in enumerate(outcomes)]
        waiting = [(index, each) for index, each in unsettled if each is not None]
        if self._sink is None or not waiting:
            return outcomes
        try:
            errors = self._sink.settle([each for _, each in waiting])
        except Exception as error:
            errors = [error] * len(waiting)
        settled = list(outcomes)
        for (index, _), failed in zip(waiting, errors, strict=True):
            if failed is not None:
                was = outcomes[index]
                settled[index] = Outcome(
                    was.id,
                    self._told(failed),
                    bytes_in=was.bytes_in,
                    seconds=was.seconds,
                    store_failed=is_store_failure(failed),
                )
        return settled

    def _whole(self, task: Task, mark: Mark) -> Outcome:
        if not self._by_path:
            data = self._source.read_object(task.source)
            return self._transformed(task, data, len(data), mark)
        path = self._source.local_path(task.source)
        if path is not None:
            return self._transformed(task, path, Path(path).stat().st_size, mark)
        with self._copies.copy(self._source, task.source) as copy:
            return self._transformed(task, str(copy), copy.stat().st_size, mark)

    def _transformed(self, task: Task, data: bytes | str, size: int, mark: Mark) -> Outcome:
        """The outcome of an object of `size` bytes. `data`: its content, or the path of a file that has it."""
        if self._direct:
            result = self._transform(data, task.source, mark)
        else:
            with self._slots:
                mark(time.monotonic())
                result = self._on_loop(self._executor.transform(data, task.source, self._etl_args))
        mark(0)
        stored, stored_id = self._put(task, result)
        return Outcome(task.id, "", stored, stored_id, size, len(result))

    def _transform(self, data: bytes | str, name: str, mark: Mark) -> bytes:
        with self._slots:
            mark(time.monotonic())
            try:
                result: Any = self.server.transform(data, name, self._etl_args)
                if hasattr(result, "__await__"):
                    result = self._on_loop(_finish(result))
            except BaseException as error:
                raise transform_error(error) from error
        if not isinstance(result, (bytes, bytearray, memoryview)):
            raise TransformError(f"transform() returned {type(result).__name__}, expected bytes")
        return bytes(result)

    def _stream(self, task: Task, mark: Mark, grant: Grant) -> Outcome:
        source = TaskSource(lambda: self._source.open_object(task.source))
        written = 0

        def pieces() -> Iterator[bytes]:
            nonlocal written
            stream: bytes | BatchStream | None = None
            with self._slots:
                try:
                    mark(time.monotonic())
                    stream = self._on_loop(self._executor.stream(source, task.source, self._etl_args))
                    batches = iter(([stream],)) if isinstance(stream, bytes) else self._batches(stream, mark)
                    for batch in batches:
                        mark(0)
                        for piece in batch:
                            written += len(piece)
                            yield piece
                        grant.reach(self._stream_memory(written))
                finally:
                    mark(0)
                    if isinstance(stream, BatchStream):
                        self._on_loop(stream.aclose())
                    source.close()

        stored, stored_id = self._put(task, pieces())
        return Outcome(task.id, "", stored, stored_id, source.bytes_read, written)

    def _batches(self, stream: BatchStream, mark: Mark) -> Iterator[Batch]:
        while True:
            mark(time.monotonic())
            batch = self._on_loop(_next(stream))
            if batch is None:
                return
            yield batch

    def _put(self, task: Task, content: bytes | Iterator[bytes]) -> tuple[str, str]:
        """The name and the identity of the output that was written."""
        sink = self._sink
        if sink is None:
            if not isinstance(content, bytes):
                for _ in content:
                    pass
            return task.output, ""
        if self._naming.router == "content-hash":
            return self._put_hashed(sink, task, content)
        return self._put_as(sink, task, task.output, content)

    def _put_hashed(self, sink: ObjectStore, task: Task, content: bytes | Iterator[bytes]) -> tuple[str, str]:
        """Put an output under the name that its content gives it. A large stream waits on disk for its name."""
        if isinstance(content, bytes):
            return self._put_claimed(sink, task, content, hashlib.sha256(content).hexdigest())
        digest = hashlib.sha256()
        with tempfile.SpooledTemporaryFile(LARGE) as spool:
            for piece in content:
                digest.update(piece)
                spool.write(piece)
            small = spool.tell() <= LARGE
            spool.seek(0)
            again = spool.read() if small else iter(lambda: spool.read(PIECE), b"")
            return self._put_claimed(sink, task, again, digest.hexdigest())

    def _put_claimed(
        self, sink: ObjectStore, task: Task, content: bytes | Iterator[bytes], digest: str
    ) -> tuple[str, str]:
        name = self._naming.hashed(task.output, digest)
        if not sink.exists(name):
            claim(self._owner.journal, name)
        return self._put_as(sink, task, name, content)

    def _put_as(self, sink: ObjectStore, task: Task, name: str, content: bytes | Iterator[bytes]) -> tuple[str, str]:
        if isinstance(content, bytes) and len(content) <= LARGE:
            unsettled = sink.put_unsettled(name, content, content_type=self._mime_type())
            self._unsettled[task.id] = unsettled
            info: ObjectInfo = unsettled.info
        else:
            sink.put_object(name, content, content_type=self._mime_type())
            # Some servers call an object that came in parts by one etag then, and by another one ever after.
            info = sink.stat_object(name)
        return name, output_identity(info, self._naming.router)

    def _mime_type(self) -> str:
        try:
            return self.server.get_mime_type()
        except Exception as error:
            raise TransformError(f"get_mime_type(): {error}") from error

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _told(self, error: BaseException) -> str:
        text = error.detail if isinstance(error, ETLError) else f"{type(error).__name__}: {error}"
        raised = error.__cause__ if isinstance(error, TransformError) else None
        frames = traceback.extract_tb(raised.__traceback__) if raised is not None else []
        own = [frame for frame in frames if "/etl_server/" not in frame.filename]
        if own:
            text += f" ({own[-1].filename.rpartition('/')[2]}:{own[-1].lineno})"
        text = " ".join(self._settings.redact(text).split()) or type(error).__name__
        return printable(text)[:LONGEST_ERROR]


def is_store_failure(error: BaseException) -> bool:
    """Whether it is a store that failed, so that other objects are likely to fail as well."""
    return isinstance(error, ObjectStoreTransientError) or (isinstance(error, OSError) and error.errno in _STORE_ERRORS)


_STORE_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}


class Budget:
    """The bytes that the objects of one process may take up. What is larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes."""
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def grant(self, size: int) -> Iterator[Grant]:
        """Wait for room, which is free again in the end."""
        with self._changed:
            while self._used and self._used + size > self._limit:
                self._changed.wait()
            self._used += size
        grant = Grant(self, size)
        try:
            yield grant
        finally:
            with self._changed:
                self._used -= grant.size
                self._changed.notify_all()

    def add(self, size: int) -> None:
        """Count bytes that are there already: others wait for them, and nobody here."""
        with self._changed:
            self._used += size


class Grant:
    """What one object has of a budget."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size
        """Bytes."""

    def reach(self, size: int) -> None:
        """It takes up so many bytes by now, which may be more than anybody knew before."""
        if size > self.size:
            self._budget.add(size - self.size)
            self.size = size


class TaskSource:
    """An object of a store that a task streams. It counts what the transform has taken."""

    repeatable = True
    whole = None
    length = None

    def __init__(self, open_object: Callable[[], BinaryIO]) -> None:
        self._open_object = open_object
        self._reader: _Reader | None = None
        self._async_reader: AsyncReader | None = None

    @property
    def failure(self) -> BaseException | None:
        return self._reader.failure if self._reader is not None else None

    @property
    def bytes_read(self) -> int:
        """Bytes that the transform has taken."""
        return self._reader.count if self._reader is not None else 0

    def read_now(self) -> bytes | None:
        return self.whole

    async def read(self) -> bytes:
        return await asyncio.to_thread(lambda: self._open().read())

    def opener(self) -> Callable[[], BinaryIO]:
        return self._open

    async def async_reader(self) -> AsyncReader:
        opened = await asyncio.to_thread(self._open)

        async def receive() -> Batch:
            piece = await asyncio.to_thread(opened.read1, PIECE)
            return [piece] if piece else []

        self._async_reader = AsyncReader(receive)
        return self._async_reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cut()

    def _open(self) -> io.BufferedReader:
        self._reader = reader = _Reader(self._open_object())
        return buffered(reader)


class _Reader(io.RawIOBase):
    """A store's stream that counts what is read, and remembers that reading failed."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._lock = threading.Lock()
        self.count = 0
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._take(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        return self._take(-1)

    def _take(self, size: int) -> bytes:
        try:
            with self._lock:
                piece = self._stream.read(size)
        except BaseException as error:
            self.failure = error
            raise
        self.count += len(piece)
        return piece

    def cut(self) -> None:
        """Nobody reads any more."""
        with self._lock:
            self._stream.close()

    def close(self) -> None:
        if not self.closed:
            self.cut()
        super().close()


async def _finish(work: Awaitable[T]) -> T:
    return await work


async def _next(stream: BatchStream) -> Batch | None:
    try:
        return await stream.__anext__()
    except StopAsyncIteration:
        return None
