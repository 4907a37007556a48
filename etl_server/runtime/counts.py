"""What the data path counts: whole numbers in lists, as an object takes microseconds and may not pay for a library.

`metrics` shows them. Everything here belongs to the event loop, save where it says otherwise.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable
from time import perf_counter_ns
from typing import TYPE_CHECKING

from .flow import Batch, BatchStream

if TYPE_CHECKING:
    from .source import Source

Outcome = int | str
"""The status that an object was answered with, or `CUT`, or `GONE`."""
CUT = "cut"
"""The answer broke off after its beginning, and its connection was cut."""
GONE = "gone"
"""The client went away, or the server ended, before the answer was sent."""


class Tally:
    """How many values there were of each size, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * 65
        """By power of two: the last value of number n is 2**n."""
        self.total = 0

    def add(self, value: int) -> None:
        """There was one more."""
        self.counts[(value - 1).bit_length()] += 1
        self.total += value


class _ThreadTally(Tally):
    """The same, for threads."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, value: int) -> None:
        with self._lock:
            super().add(value)


class _NoTally(Tally):
    __slots__ = ()

    def add(self, value: int) -> None:
        pass


UNCOUNTED = _NoTally()
"""Takes what nobody wants to know."""


class Way:
    """What is counted of the objects that come in one way."""

    __slots__ = ("name", "outcomes", "thread_times", "times")

    def __init__(self, name: str) -> None:
        self.name = name
        self.outcomes: dict[Outcome, int] = {200: 0}
        """Objects that were answered, by how."""
        self.times = Tally()
        """Nanoseconds in the transform on the event loop, and of streams."""
        self.thread_times: Tally = _ThreadTally()
        """Nanoseconds in the transform in threads."""

    def answered(self, outcome: Outcome) -> None:
        """An object is finished."""
        try:
            self.outcomes[outcome] += 1
        except KeyError:
            self.outcomes[outcome] = 1


class _NoWay(Way):
    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.times = self.thread_times = UNCOUNTED

    def answered(self, outcome: Outcome) -> None:
        pass


class Counts:
    """All that a process counts."""

    def __init__(self, *, on: bool = True) -> None:
        """With `on=False` it counts as good as nothing, at next to no cost."""
        way = Way if on else _NoWay
        self.push = way("push")
        """PUT with the object."""
        self.pull = way("pull")
        """GET: the object is the target's, or that of `ETL_SOURCE`."""
        self.fqn = way("fqn")
        """PUT or GET that names a local file."""
        self.download = way("download")
        self.websocket = way("websocket")
        """An object over a WebSocket, or a local file that is named there."""
        self.ways = (self.push, self.pull, self.fqn, self.download, self.websocket)
        self._on = on
        self.taken = Tally()
        """Bytes of the objects that were transformed."""
        self.made = Tally()
        """Bytes of what they were transformed to."""
        self.direct_puts: Counter[str] = Counter()
        """Objects that were sent on, by what became of that."""
        self.retries = 0
        """Repeats of that."""

    def passed(self, taken: int | None, made: int) -> None:
        """An object of `taken` bytes, where that is known, was transformed to one of `made` bytes."""
        if not self._on:
            return
        # What `Tally.add` does, without the calls: most objects come this way.
        if taken is not None:
            tally = self.taken
            tally.counts[(taken - 1).bit_length()] += 1
            tally.total += taken
        tally = self.made
        tally.counts[(made - 1).bit_length()] += 1
        tally.total += made

    async def stream(self, way: Way, source: Source, starting: Awaitable[bytes | BatchStream]) -> bytes | BatchStream:
        """The result of a stream that is being started, counted when it is whole, and timed when it has ended."""
        started = perf_counter_ns()
        content: bytes | BatchStream | None = None
        try:
            content = await starting
        finally:
            if not isinstance(content, BatchStream):
                way.times.add(perf_counter_ns() - started)
        if isinstance(content, bytes):
            self.passed(source.length, len(content))
            return content
        return _CountedStream(self, way, source, content, started)


class _CountedStream(BatchStream):
    def __init__(self, counts: Counts, way: Way, source: Source, content: BatchStream, started: int) -> None:
        self._counts = counts
        self._times: Tally | None = way.times
        self._source = source
        self._content = content
        self._started = started
        self._size = 0

    async def __anext__(self) -> Batch:
        try:
            batch = await anext(self._content)
        except StopAsyncIteration:
            if self._times is not None:
                self._counts.passed(self._source.length, self._size)
            self._end()
            raise
        self._size += sum(map(len, batch))
        return batch

    async def aclose(self) -> None:
        self._end()
        await self._content.aclose()

    def _end(self) -> None:
        times, self._times = self._times, None
        if times is not None:
            times.add(perf_counter_ns() - self._started)
