"""Where the work of a job is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from ..ledger import Outcome, Task

LEASE = 15.0
"""Seconds after which a worker on another machine that hears nothing has ended."""


class Busy(NamedTuple):
    """An object that is being worked on."""

    task_id: int
    seconds: float


class Engine(ABC):
    """Does tasks somewhere else. Used by one thread. A task that is submitted has one outcome, unless it is stopped."""

    unclean = False
    """A worker did not end in peace, and may have left something half-written."""
    abandoned = False
    """A worker that nobody hears of any more may be at work for another `LEASE`."""

    @abstractmethod
    def room(self) -> int:
        """How many more tasks it can use now."""

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> None:
        """Take on tasks, at most as many as there is room for."""

    @abstractmethod
    def poll(self, timeout: float) -> list[Outcome]:
        """Wait for outcomes, at most `timeout` seconds; maybe none.

        Raises:
            JobError: no worker can be set up.
        """

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Tasks that were submitted and have no outcome yet."""

    @abstractmethod
    def busy(self) -> list[Busy]:
        """What is being worked on, the longest first."""

    @abstractmethod
    def stop(self) -> None:
        """Forget what is not begun; what is has an outcome still."""

    @abstractmethod
    def close(self) -> None:
        """End all workers: in peace, if nothing is in flight."""
