"""What a process has taken on: objects in flight, and whether it still takes more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Admission:
    """Counts the objects in flight; knows when those that were there as draining began are finished."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        """Set once the process is to stop."""
        self._counts = [0, 0]
        self._drainers: set[Callable[[], None]] = set()

    def enter(self) -> int:
        """An object, or a WebSocket, comes in; the return value is for `leave`."""
        late = int(self.draining.is_set())
        self._counts[late] += 1
        return late

    def leave(self, ticket: int, drainer: Callable[[], None] | None = None) -> None:
        """It is finished, and so is what it gave to `on_drain`."""
        self._counts[ticket] -= 1
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

    @property
    def in_flight(self) -> int:
        """Objects and WebSockets that are not finished."""
        return sum(self._counts)

    @property
    def drained(self) -> bool:
        """Whether all that was in flight as draining began is finished."""
        return self.draining.is_set() and not self._counts[0]
