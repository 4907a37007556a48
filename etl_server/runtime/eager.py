"""Start work without a task: most objects are served before they have to wait for anything."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


def start_eagerly(work: Coroutine[Any, Any, None], *, eager: bool = True) -> asyncio.Task[None] | None:
    """Run `work` to its first wait. None: it is finished; else the task in which it goes on.

    What runs before that wait has no current task. Work that needs one is to be started with `eager=False`.
    """
    if eager:
        try:
            waiting = work.send(None)
        except StopIteration:
            return None
        work = _Started(work, waiting)
    return asyncio.get_running_loop().create_task(work)


_TAKEN = object()


class _Started(Coroutine[Any, Any, None]):
    """A coroutine that has run to its first wait, for a task to go on with.

    What is thrown into it reaches the coroutine even before the task's first step.
    """

    __slots__ = ("_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waiting: Any) -> None:
        self._coroutine = coroutine
        self._waiting = waiting

    def send(self, value: Any) -> Any:
        waiting, self._waiting = self._waiting, _TAKEN
        return self._coroutine.send(value) if waiting is _TAKEN else waiting

    def throw(self, *error: Any) -> Any:
        self._waiting = _TAKEN
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return (yield from self._coroutine.__await__())
