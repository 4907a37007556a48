"""What a process has taken on: objects in flight, and whether it still takes more."""

from __future__ import annotations

import asyncio


class Admission:
    """Counts the objects in flight; knows when those that were there as draining began are finished."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        """Set once the process is to stop."""
        self.in_flight = 0
        self._before_drain: set[object] = set()
        self._now: set[object] = set()

    def enter(self) -> object:
        """An object, or a WebSocket, comes in; the return value is for `leave`."""
        ticket = object()
        self._now.add(ticket)
        self.in_flight += 1
        return ticket

    def leave(self, ticket: object) -> None:
        """It is finished."""
        self._now.discard(ticket)
        self._before_drain.discard(ticket)
        self.in_flight -= 1

    def drain(self) -> None:
        """From now on the process is stopping: what is in flight finishes."""
        if not self.draining.is_set():
            self._before_drain = set(self._now)
            self.draining.set()

    @property
    def drained(self) -> bool:
        """Whether all that was in flight as draining began is finished."""
        return self.draining.is_set() and not self._before_drain
