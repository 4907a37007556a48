"""A part of something longer, as a stream."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Span(io.RawIOBase):
    """The bytes `start` to `stop` (not included) of something, as a stream with a position of its own."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self._start = self._position = start
        self._stop = stop

    @abstractmethod
    def _read_into(self, view: memoryview) -> int:
        """Read some of what is at `_position`, at least one byte."""

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
        self._position = position
        return self.tell()

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._stop - self._position)]
        count = self._read_into(view) if view else 0
        self._position += count
        return count

    def readall(self) -> bytes:
        """All that is left, in pieces as large as they come."""
        whole = memoryview(bytearray(max(0, self._stop - self._position)))
        rest = whole
        while rest:
            rest = rest[self.readinto(rest) :]
        return bytes(whole)
