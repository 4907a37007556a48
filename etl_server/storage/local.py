"""A directory as an object store."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from ..wire.names import encode_object_path
from .base import (
    COPY_SIZE,
    Callback,
    ObjectInfo,
    ObjectStore,
    Owner,
    Progress,
    Unsettled,
    check_name,
    check_range,
)
from .files import FileSlice, FileTree


class LocalObjectStore(ObjectStore):
    """The files below a directory as objects, whose names are their relative paths.

    A segment of a name that can be no file's name (an empty one, `.`, `..`) has a `%` in front of it in the path, so
    every name has a path of its own, and none leads out. Symbolic links are followed inside the directory only; a
    link to a directory is not listed. A content is synced to disk before it becomes the object. What a process that
    was killed leaves behind (`.etl-server-incoming-…`) is never taken for an object.

    An object `a` and an object `a/b` cannot be at once: the second one fails with `ObjectStoreError`.
    """

    def __init__(self, root: str | Path) -> None:
        """`root`: the directory; it comes into being with the first object that is stored."""
        self._tree = FileTree(Path(root))

    @property
    def root(self) -> Path:
        """The directory, which may not be there yet."""
        return self._tree.root

    def get_uri(self, object_name: str) -> str:
        check_name(object_name)
        return f"file://{encode_object_path(str(self._tree.path(object_name)))}"

    def stat_object(self, object_name: str) -> ObjectInfo:
        with self._missing_by_uri(object_name):
            return _info(object_name, self._tree.stat(object_name))

    def upload_object(self, object_name: str, filename: str | Path, callback: Callback | None = None) -> None:
        check_name(object_name)
        with Path(filename).open("rb") as file, self._tree.create(object_name) as incoming:
            size = os.fstat(file.fileno()).st_size
            progress = Progress(callback, size)
            whole = FileSlice(file, 0, size)
            while piece := whole.read(COPY_SIZE):
                incoming.write(piece)
                progress.add(len(piece))
            incoming.commit()

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not self._tree.root.is_dir():
            raise FileNotFoundError(2, "no such directory", f"file://{encode_object_path(str(self._tree.root))}")
        for name, status in self._tree.scan(prefix):
            yield _info(name, status)

    def open_object(self, object_name: str, start: int = 0, stop: int | None = None) -> BinaryIO:
        check_range(start, stop)
        with self._missing_by_uri(object_name):
            file = self._tree.open(object_name)
        size = os.fstat(file.fileno()).st_size
        stop = size if stop is None else min(stop, size)
        return io.BufferedReader(FileSlice(file, min(start, stop), stop, owned=True), COPY_SIZE)

    def put_object(
        self, object_name: str, data: bytes | Iterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        """Files have no content type: it is not kept."""
        check_name(object_name)
        with self._tree.create(object_name) as incoming:
            for piece in (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data:
                incoming.write(piece)
            return _info(object_name, incoming.commit())

    def read_object(self, object_name: str) -> bytes:
        with self._missing_by_uri(object_name):
            return self._tree.read(object_name)

    def local_path(self, object_name: str) -> str:
        with self._missing_by_uri(object_name):
            return self._tree.real_path(object_name)

    def put_unsettled(self, object_name: str, data: bytes, *, content_type: str | None = None) -> Unsettled:
        check_name(object_name)
        incoming, status = self._tree.write(object_name, data)
        return Unsettled(_info(object_name, status), incoming)

    def settle(self, objects: Sequence[Unsettled]) -> list[Exception | None]:
        return self._tree.settle([(each.info.name, each.incoming) for each in objects])

    def claim(self, owner: Owner) -> None:
        self._tree.owner = owner.id

    def clean(self, owner: Owner) -> None:
        self._tree.remove_incoming(owner.id)

    def delete_object(self, object_name: str) -> None:
        check_name(object_name)
        self._tree.delete(object_name)

    @contextmanager
    def _missing_by_uri(self, object_name: str) -> Iterator[None]:
        check_name(object_name)
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, error.strerror, self.get_uri(object_name)) from None


def _info(name: str, status: os.stat_result) -> ObjectInfo:
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    return ObjectInfo(name, status.st_size, etag, datetime.fromtimestamp(status.st_mtime, timezone.utc))
