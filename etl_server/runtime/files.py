"""Local files that a target names by `etl_fqn`: which may be read, and how they are opened."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileForbiddenError, ObjectMissingError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

_AIS_LAYOUT = re.compile(
    r"""
    /@[a-z][a-z0-9]*          # provider
    (/@[^/]*\#[^/]*)?         # namespace: @uuid#name
    /[^/]+                    # bucket
    /%(ob|ch)                 # objects, or chunks of them
    /.""",
    re.VERBOSE | re.DOTALL,
)


class LocalFiles:
    """The files that may be read: those below `roots`, or without roots those of AIStore's on-disk layout."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots = tuple(os.path.realpath(root).rstrip("/") + "/" for root in roots)

    def find(self, fqn: str) -> LocalFile:
        """A regular file, judged by where it really is: after `..` and symbolic links.

        Raises:
            FileForbiddenError: it may not be read, or is no regular file.
            ObjectMissingError: it may be read, but is not there.
        """
        if "\0" in fqn or not fqn.startswith("/"):
            raise _forbidden(fqn)
        try:
            # O_PATH finds a file without opening it, which could do something (a device) or wait (a pipe).
            descriptor = os.open(os.path.normpath(fqn), os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            # Whether something is there is told of places only that may be read.
            if error.errno in _MISSING and self._allowed(os.path.realpath(fqn)):
                raise ObjectMissingError(f"File not found: {fqn}") from None
            raise _forbidden(fqn) from None
        try:
            # The kernel's name for what was found; no link that is changed meanwhile can lead elsewhere.
            path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - Path costs more than the call
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not self._allowed(path):
                raise _forbidden(fqn)
        except BaseException:
            os.close(descriptor)
            raise
        return LocalFile(descriptor, path, status.st_size)

    def _allowed(self, path: str) -> bool:
        if self._roots:
            return path.startswith(self._roots)
        return _AIS_LAYOUT.search(path) is not None


class LocalFile:
    """A regular file that may be read. Not open yet; a context manager, or `close` it."""

    __slots__ = ("_descriptor", "path", "size")

    def __init__(self, descriptor: int, path: str, size: int) -> None:
        self._descriptor = descriptor
        self.path = path
        """Where it really is."""
        self.size = size
        """Bytes."""

    def open(self) -> ObjectFile:
        """Open it for reading, whatever has become of its path.

        Raises:
            FileForbiddenError: this process has no right to read it.
        """
        try:
            return ObjectFile(f"/proc/self/fd/{self._descriptor}")
        except PermissionError:
            raise _forbidden(self.path) from None

    def read_if_cached(self) -> bytes | None:
        """Its content, if that is in the page cache, so that reading it does not wait for a disk."""
        with self.open() as file:
            buffer = bytearray(self.size)
            try:
                count = os.preadv(file.fileno(), [buffer], 0, os.RWF_NOWAIT)
            except OSError:  # not in the cache, or a file system that cannot tell
                return None
            return bytes(buffer) if count == self.size else None

    def close(self) -> None:
        """May be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ObjectFile(io.FileIO):
    """A file's raw reader, which remembers that reading failed, whatever its user makes of that."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "rb")
        self.failure: OSError | None = None
        """Why the rest of the file cannot be read."""

    def readinto(self, buffer: Buffer) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.failure = error
            raise

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            self.failure = error
            raise


def _forbidden(fqn: str) -> FileForbiddenError:
    return FileForbiddenError(f"Not allowed to read {fqn!r}")
