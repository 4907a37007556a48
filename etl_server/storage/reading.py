"""A stream of an object behind a network, which survives that its connection is cut."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..errors import ObjectStoreTransientError
from .retry import RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Body(Protocol):
    """The body of an answer: an object from some byte on."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. Raises `ObjectStoreTransientError` when the connection is cut."""

    def close(self) -> None: ...


class ResumingReader(io.RawIOBase):
    """The bytes `start` to `stop` (not included) of an object.

    A read that fails is tried again on a new connection, from where it was. It ends at `stop` and never before.
    """

    def __init__(
        self, open_at: Callable[[int], Body], start: int, stop: int, policy: RetryPolicy, first: Body | None = None
    ) -> None:
        """
        Args:
            open_at: asks for the object from this byte on.
            start: the first byte.
            stop: the byte behind the last one.
            policy: how often a read is tried without getting anything.
            first: the body from `start` on, if it is open already.
        """
        super().__init__()
        self._open_at = open_at
        self._start = self._position = start
        self._stop = stop
        self._policy = policy
        self._body = first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = {os.SEEK_SET: self._start, os.SEEK_CUR: self._position, os.SEEK_END: self._stop}[whence] + offset
        if position < self._start:
            raise ValueError(f"seek to {position - self._start}: expected no negative position")
        if position != self._position:
            self._drop()
            self._position = position
        return self.tell()

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._stop - self._position)]
        if not view:
            return 0
        data = self._policy.call(lambda: self._read(len(view)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._open_at(self._position)
            data = self._body.read(size)
            if not data:
                raise ObjectStoreTransientError(f"The object ended {self._stop - self._position} bytes early")
        except BaseException:
            self._drop()
            raise
        return data

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        """Close the connection, or give it back if everything was read."""
        if not self.closed:
            self._drop()
        super().close()
