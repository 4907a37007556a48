"""Local files that a target names by `etl_fqn`: which may be read, and how they are opened."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import FileForbiddenError, ObjectMissingError

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
        self._roots = tuple(os.path.realpath(root) for root in roots)

    def open(self, fqn: str) -> BinaryIO:
        """Open a regular file for reading, judged by where it really is: after `..` and symbolic links.

        Raises:
            FileForbiddenError: it may not be read, or is no regular file.
            ObjectMissingError: it may be read, but is not there.
        """
        # Judged before it is opened, because opening alone can do something (a device), and again afterwards by the
        # name that the kernel has for it, because a link could have been changed in between.
        path = self.resolve(fqn)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissingError(f"File not found: {fqn}") from None
        except OSError:
            raise _forbidden(fqn) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not self._allowed(opened_path(descriptor) or path):
                raise _forbidden(fqn)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def resolve(self, fqn: str) -> str:
        """Where `fqn` leads, which need not be there.

        Raises:
            FileForbiddenError: it leads to where nothing may be read.
        """
        if "\0" in fqn or not fqn.startswith("/"):
            raise _forbidden(fqn)
        try:
            path = os.path.realpath(fqn)
        except (OSError, ValueError):
            raise _forbidden(fqn) from None
        if not self._allowed(path):
            raise _forbidden(fqn)
        return path

    def _allowed(self, path: str) -> bool:
        if self._roots:
            return any(path.startswith(root if root.endswith("/") else root + "/") for root in self._roots)
        return _AIS_LAYOUT.search(path) is not None


def opened_path(descriptor: int) -> str | None:
    """Where an open file really is; None on a system without /proc."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return None


def _forbidden(fqn: str) -> FileForbiddenError:
    return FileForbiddenError(f"Not allowed to read {fqn!r}")
