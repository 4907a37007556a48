"""What a process takes on: how many bytes of objects it may hold, and whether it still takes more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

SMALL_SHARE = 8
"""One part in so many of the memory is kept for small objects."""
UNKNOWN = float("inf")
"""The size of an object that is not known."""
SMALL_OBJECT = 64
"""An object is small up to one part in so many of the memory."""


class Admission:
    """Counts what is in flight."""

    def __init__(self, max_memory: int) -> None:
        self.memory = Memory(max_memory)
        self.draining = asyncio.Event()
        """Set once the process is to stop."""
        self.in_flight = 0
        """Objects and WebSockets that are not finished."""
        self._drainers: set[Callable[[], None]] = set()

    def enter(self) -> None:
        """An object, or a WebSocket, comes in."""
        self.in_flight += 1

    def leave(self, drainer: Callable[[], None] | None = None) -> None:
        """It is finished, and so is what it gave to `on_drain`."""
        self.in_flight -= 1
        if drainer is not None:
            self._drainers.discard(drainer)

    def on_drain(self, drainer: Callable[[], None]) -> None:
        """Call `drainer` when draining begins."""
        self._drainers.add(drainer)

    def drain(self) -> None:
        """The process is to stop."""
        if not self.draining.is_set():
            self.draining.set()
            for drainer in tuple(self._drainers):
                drainer()


class Memory:
    """The bytes that objects may take up, in two lanes, so that large objects do not hold up small ones.

    Within a lane, who came first goes first. What is larger than its lane goes alone.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: bytes."""
        self._small_object = limit // SMALL_OBJECT
        self._small = Lane(limit // SMALL_SHARE)
        self._large = Lane(limit - limit // SMALL_SHARE)

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return self._small.used + self._large.used

    @property
    def full(self) -> bool:
        """Whether a large object would have to wait."""
        return self._large.used >= self._large.limit or bool(self._large.waiting)

    async def wait_for_room(self) -> None:
        """Wait until a large object would not have to."""
        if self.full:
            await self._large.wait(1)
            self._large.give_back(1)

    def lane(self, size: float) -> Lane:
        """The lane of an object of `size` bytes."""
        return self._small if size <= self._small_object else self._large


class Lease:
    """The memory that one object has been granted."""

    __slots__ = ("_lane", "_memory", "_privileged", "_released", "_size")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lane = memory.lane(0)
        self._size = 0
        self._privileged = False
        self._released = False

    async def take(self, size: int) -> None:
        """Wait for `size` bytes, before they are read. Once, and before anything else."""
        if not self.take_now(size):
            size = min(size, self._lane.limit)
            await self._lane.wait(size)
            self._size += size

    def take_now(self, size: int) -> bool:
        """Take `size` bytes, if that needs no waiting: then `take` need not be called."""
        self._lane = lane = self._memory.lane(size)
        size = min(size, lane.limit)
        if not lane.take_now(size):
            return False
        self._size += size
        return True

    async def grow(self, size: int) -> None:
        """Wait for `size` bytes more, of an object whose size nobody knows. Not together with `take`.

        Where there is no room, one object at a time goes beyond the limit: were all to wait for each other, none
        would ever finish.
        """
        lane = self._lane = self._memory.lane(UNKNOWN)
        if not self._privileged and lane.used + size > lane.limit:
            await lane.privilege.acquire()
            self._privileged = True
        lane.used += size
        self._size += size

    def add(self, size: int) -> None:
        """Count bytes that are there already; of an object that is finished, nothing counts any more."""
        if self._released:
            return
        if not self._size:
            self._lane = self._memory.lane(size)
        self._lane.used += size
        self._size += size

    def release(self) -> None:
        """The object is finished. May be called more than once."""
        self._released = True
        if self._privileged:
            self._privileged = False
            self._lane.privilege.release()
        if self._size:
            self._lane.give_back(self._size)
            self._size = 0


class Lane:
    """Something that there is so much of: who came first is served first."""

    __slots__ = ("limit", "privilege", "used", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.privilege = asyncio.Lock()

    def take_now(self, size: int) -> bool:
        """Take `size`, if there is so much and nobody waits; else `wait` is to be called."""
        if self.waiting or self.used + size > self.limit:
            return False
        self.used += size
        return True

    async def wait(self, size: int) -> None:
        """Take `size`, once it is there."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, place)
        self.waiting.append(entry)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back(size)
            elif entry in self.waiting:
                self.waiting.remove(entry)
                self._admit()
            raise

    def give_back(self, size: int) -> None:
        """Others may have it."""
        self.used -= size
        if self.waiting:
            self._admit()

    def _admit(self) -> None:
        while self.waiting:
            size, place = self.waiting[0]
            if self.used and self.used + size > self.limit:
                return
            self.waiting.popleft()
            if not place.done():
                self.used += size
                place.set_result(None)
