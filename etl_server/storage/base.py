"""What every object store can do, whatever it is behind."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, TypeVar

from .files import FileTree, IncomingFile

Callback = Callable[[int, int], object]
"""Called with the bytes so far, which never become fewer, and the total; from one thread at a time."""

COPY_SIZE = 1 << 20
"""Bytes that are copied in one go."""

_Store = TypeVar("_Store", bound="ObjectStore")


class ObjectInfo(NamedTuple):
    """What a store tells of an object."""

    name: str
    size: int
    """Bytes."""
    etag: str | None
    """Text that differs for another content, as the store defines it; None where it does not tell."""
    modified: datetime | None
    """When it was last written, in UTC; None where the store does not tell."""


class Owner(NamedTuple):
    """Who writes, so that what it leaves behind when it is killed can be found: `ObjectStore.claim`, `clean`."""

    id: str
    """Hexadecimal digits that nobody else has."""
    journal: Path
    """A file for notes, which is only there while there is something to be noted."""


class Unsettled(NamedTuple):
    """An object that was handed over, and is to be settled."""

    info: ObjectInfo
    incoming: str = ""
    """Where it waits; empty: it is settled."""


class ObjectStore(ABC):
    """Reads and writes objects. Every method may be called from several threads at once.

    Names are any text but the empty one. They are relative to the prefix of the store, where it has one.

    Every method that asks the store may raise, beyond what it says itself:
        PermissionError: the credentials are wrong, or do not allow it. Never tried again.
        ObjectStoreTransientError: throttled, 5xx, reset, timed out, and again when it was tried again.
        ObjectStoreError: the store refused it for another reason.
        ValueError: the store can have no object of this name.
        OSError: a file on this machine cannot be read or written: the disk is full, for one.
    """

    @abstractmethod
    def get_uri(self, object_name: str) -> str:
        """The object's URI, percent-encoded. Nobody is asked whether there is such an object."""

    def get_object_size(self, object_name: str) -> int:
        """The object's size in bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return self.stat_object(object_name).size

    @abstractmethod
    def stat_object(self, object_name: str) -> ObjectInfo:
        """What the store knows of the object.

        Raises:
            FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def upload_object(self, object_name: str, filename: str | Path, callback: Callback | None = None) -> None:
        """Store a file as an object, in place of one that may be there. Readers see the old or the new, never a part.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def download_object(
        self, object_name: str, filename: str | Path, overwrite: bool = False, callback: Callback | None = None
    ) -> None:
        """Write an object to a file, which there is not, or stays as it was, until it is whole.

        Args:
            object_name: the object.
            filename: the file, or a directory: then the object's name is the path below it, as in a store of files.
            overwrite: replace a file that is there.
            callback: told of the progress.

        Raises:
            FileNotFoundError: there is no such object, or no directory for the file.
            FileExistsError: the file is there, and not to be overwritten.
        """
        check_name(object_name)
        path = Path(filename)
        if path.is_dir():
            tree = FileTree(path)
            path = tree.path(object_name)
            goal: AbstractContextManager[IncomingFile] = tree.create(object_name)
        else:
            goal = IncomingFile.beside(path)
        with goal as incoming:
            if not overwrite:
                incoming.check_absent()
            self._download(object_name, incoming, callback)
            incoming.commit(replace=overwrite)

    def _download(self, object_name: str, incoming: IncomingFile, callback: Callback | None) -> None:
        """Write the object's content into a file."""
        with self.open_object(object_name) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            progress = Progress(callback, size)
            while piece := stream.read(COPY_SIZE):
                incoming.write(piece)
                progress.add(len(piece))

    @abstractmethod
    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names begin with `prefix`, asked for page by page as they are taken.

        They are sorted by name where the system behind sorts them.

        Raises:
            FileNotFoundError: there is no such bucket or directory.
        """

    @abstractmethod
    def open_object(self, object_name: str, start: int = 0, stop: int | None = None) -> BinaryIO:
        """Read the bytes `start` to `stop` (not included; None: to the end) as a stream, which is to be closed.

        As with a slice, what is beyond the object's end is left out. A connection that is cut is opened again where
        it was; a read raises when that does not help, or the object has been replaced meanwhile. The stream ends
        where the object ends, and never before.

        Raises:
            FileNotFoundError: there is no such object.
            ValueError: `start` or `stop` is negative.
        """

    @abstractmethod
    def put_object(
        self, object_name: str, data: bytes | Iterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        """Store bytes, or what an iterable of bytes yields, as an object in place of one that may be there.

        Readers see the old or the new object, never a part. An exception that comes out of the iterable is passed on,
        and leaves nothing behind.
        """

    def stream_memory(self, size: int | None = None) -> int:
        """Bytes that `put_object` of an iterable takes up, beside what that yields.

        Args:
            size: bytes that it yields in all; None: nobody knows, and this is what it takes up to begin with. It may
                take up more with every byte: of those that have come, as much as this says of so many.
        """
        return COPY_SIZE

    def read_object(self, object_name: str) -> bytes:
        """All of an object at once.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with self.open_object(object_name) as stream:
            return stream.read()

    def local_path(self, object_name: str) -> str | None:
        """The path of the file that the object is, without links; None where objects are no local files.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return None

    def put_unsettled(self, object_name: str, data: bytes, *, content_type: str | None = None) -> Unsettled:
        """Like `put_object`, but the object may come into being, and is sure to last, only with `settle`."""
        return Unsettled(self.put_object(object_name, data, content_type=content_type))

    def settle(self, objects: Sequence[Unsettled]) -> list[Exception | None]:
        """Make objects durable, many at once for the price of a few. Returns for each what failed, or None.

        Where it was only that the object is sure to last, the object may be there all the same.
        """
        return [None] * len(objects)

    def claim(self, owner: Owner) -> None:  # noqa: B027 - not all leave something behind
        """From now on the half-written objects of this store belong to `owner`."""

    def clean(self, owner: Owner) -> None:  # noqa: B027 - as above
        """Remove what the processes of `owner`, none of which is alive any more, have left half-written."""

    @abstractmethod
    def delete_object(self, object_name: str) -> None:
        """Remove the object. Does nothing if there is no such object."""

    def exists(self, object_name: str) -> bool:
        """Whether there is such an object."""
        try:
            self.stat_object(object_name)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close the connections. Nothing is to be asked of the store any more."""

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Progress:
    """Adds up the bytes of a transfer for its callback, from several threads at once. Nothing to do is done at once."""

    def __init__(self, callback: Callback | None, total: int) -> None:
        self._callback = callback
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        if not total:
            self.add(0)

    def add(self, count: int) -> None:
        """So many bytes more have arrived."""
        if self._callback is not None:
            with self._lock:
                self._done += count
                self._callback(self._done, self._total)

    def reach(self, position: int) -> None:
        """All bytes before this have arrived; says nothing where they had before."""
        if position > self._done:
            self.add(position - self._done)


def check_name(object_name: str) -> None:
    """Raise ValueError for the one name that no object has."""
    if not object_name:
        raise ValueError("object name '': expected at least one character")


def check_range(start: int, stop: int | None) -> None:
    """Raise ValueError for a byte range that counts from the end."""
    if start < 0 or (stop is not None and stop < 0):
        raise ValueError(f"byte range {start} to {stop}: expected no negative position")


def checked_prefix(bucket: str, prefix: str) -> str:
    """What all names of a store in a bucket begin with: a slash is added to a prefix that has none at its end.

    Raises:
        ValueError: the bucket's name cannot be one.
    """
    if not bucket or "/" in bucket:
        raise ValueError(f"bucket {bucket!r}: expected a bucket's name")
    return f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
