"""A bucket as a directory of files."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .object_paths import INCOMING, object_name, object_path

_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))
_UNSTORABLE = frozenset((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG))


class UnstorableError(Exception):
    """No file can be where the object's name says: something is in the way, a link leads out, the name is too long."""


class BucketFiles:
    """The objects of a bucket: the regular files below `root`, which comes into being with the first of them.

    Symbolic links are followed as long as they stay below `root`; beyond that there is nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._incoming = self.root / INCOMING

    def names(self) -> list[str]:
        """The objects' names, sorted. Directories that are links are passed over, lest they go in circles."""
        names = []
        for directory, subdirectories, files in os.walk(self.root):
            subdirectories[:] = [name for name in subdirectories if name != INCOMING]
            for file in files:
                path = Path(directory, file)
                if file != INCOMING and self._leads_inside(path) and path.is_file():
                    names.append(object_name(path.relative_to(self.root).as_posix()))
        return sorted(names)

    def path(self, name: str) -> Path:
        """The file that the object is, or would be.

        Raises:
            ValueError: no file can have this name.
        """
        return self.root / object_path(name)

    def open(self, name: str) -> BinaryIO:
        """Open the object for reading. What is opened stays as it is while the object is replaced.

        Raises:
            ValueError: no file can have this name.
            FileNotFoundError: there is no such object.
        """
        path = self.path(name)
        missing = FileNotFoundError(errno.ENOENT, "no such object", name)
        if not self._leads_inside(path):
            raise missing
        try:
            # Not blocking: opening a FIFO would wait for somebody who writes to it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _MISSING:
                raise missing from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise missing
        return os.fdopen(descriptor, "rb")

    def create(self, name: str) -> Upload:
        """Begin to write an object, which there is not before `Upload.commit`.

        Raises:
            ValueError: no file can have this name.
        """
        path = self.path(name)
        self._incoming.mkdir(parents=True, exist_ok=True)
        return Upload(self, path, self._incoming / uuid.uuid4().hex)

    def remove_incoming(self) -> None:
        """Remove the directory of unfinished objects, if there is one and nobody is using it."""
        try:
            self._incoming.rmdir()
        except OSError:
            pass

    def _leads_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)


class Upload:
    """An object on its way into a bucket. As a context manager it leaves nothing behind unless it was committed."""

    def __init__(self, files: BucketFiles, path: Path, incoming: Path) -> None:
        self._files = files
        self._path = path
        self._incoming = incoming
        self._file = incoming.open("xb")

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._incoming.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append to the object."""
        self._file.write(data)

    def commit(self) -> None:
        """Sync what was written to disk, and make it the object at once, in place of the one that may be there.

        Raises:
            UnstorableError: no file can be where the object's name says.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._files._leads_inside(self._path.parent):
            raise UnstorableError("a link leads out of the bucket")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._incoming.replace(self._path)
        except OSError as error:
            if error.errno in _UNSTORABLE:
                raise UnstorableError(error.strerror) from None
            raise
