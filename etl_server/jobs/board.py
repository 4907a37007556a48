"""What a worker process is doing, in memory that it shares with its parent: it can be read when the worker is dead."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import NamedTuple

SLOTS = 256
"""Objects that a worker may work on at once."""
_SLOT = struct.Struct("=qdd")
_SIZE = SLOTS * _SLOT.size


class Active(NamedTuple):
    """An object that a worker is working on. Times are those of the monotonic clock, which all processes share."""

    task_id: int
    taken: float
    transforming: float
    """Since when its transform has been running, or since the last piece of a stream; 0: it is not running."""


class Board:
    """A slot for each object at once. A worker writes it, its parent reads it."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)

    @staticmethod
    def create() -> int:
        """A descriptor of the memory of a new board."""
        file, path = tempfile.mkstemp(prefix="etl-server-board-")
        os.unlink(path)  # noqa: PTH108 - the descriptor is all that is needed
        os.truncate(file, _SIZE)
        return file

    def take(self, slot: int, task_id: int, now: float) -> None:
        """The work on an object begins; `task_id` is at least 1."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, task_id, now, 0.0)

    def transforming(self, slot: int, since: float) -> None:
        """The transform begins, or, with 0, ends or waits for somebody else."""
        struct.pack_into("=d", self._memory, slot * _SLOT.size + 16, since)

    def release(self, slot: int) -> None:
        """The work on the object has ended."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, 0, 0.0, 0.0)

    def active(self) -> list[Active]:
        """What is being worked on."""
        return [Active._make(slot) for slot in _SLOT.iter_unpack(self._memory[:]) if slot[0]]

    def close(self) -> None:
        self._memory.close()
