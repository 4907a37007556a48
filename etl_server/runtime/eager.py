"""Start work without a task: most objects are served before they have to wait for anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Soon(asyncio.Future[T]):
    """A future after which work that was started eagerly goes on without a task, until it has to wait again."""


def start_eagerly(work: Coroutine[Any, Any, None], *, eager: bool = True) -> Work | None:
    """Run `work` to its first wait. None: it is finished; else what goes on with it.

    What runs before that wait has no current task, nor has what runs between a wait for a `Soon` that is the first one
    and the next. Work that needs one is to be started with `eager=False`.
    """
    if eager:
        try:
            waiting = work.send(None)
        except StopIteration:
            return None
        if type(waiting) is Soon:
            return _Waiting(work, waiting)
        work = _Started(work, waiting)
    return asyncio.get_running_loop().create_task(work)


class Work(Protocol):
    """What is needed of a task."""

    def done(self) -> bool: ...

    def cancel(self, msg: Any | None = None) -> bool: ...

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None: ...


class _Waiting:
    """A coroutine that waits for a `Soon`. To make a task and take its steps costs more than most objects do."""

    __slots__ = ("_callbacks", "_cancelled", "_coroutine", "_done", "_task", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waiting: Soon[Any]) -> None:
        self._coroutine = coroutine
        self._waiting = waiting
        self._callbacks: list[Callable[[Any], object]] = []
        self._cancelled = self._done = False
        self._task: asyncio.Task[None] | None = None
        waiting._asyncio_future_blocking = False  # what a task does, too, with a future that is awaited
        waiting.add_done_callback(self._go_on)

    def done(self) -> bool:
        return self._done

    def cancel(self, msg: Any | None = None) -> bool:
        if self._done:
            return False
        if self._task is not None:
            return self._task.cancel(msg)
        if not self._waiting.cancel(msg):
            self._cancelled = True  # it is about to go on
        return True

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        if self._done:
            asyncio.get_running_loop().call_soon(callback, self)
        else:
            self._callbacks.append(callback)

    def _go_on(self, _: object) -> None:
        work = self._coroutine
        try:
            waiting = work.throw(asyncio.CancelledError()) if self._cancelled else work.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._end()
        except BaseException:
            self._end()
            raise
        else:
            self._task = asyncio.get_running_loop().create_task(_Started(work, waiting))
            self._task.add_done_callback(self._end)

    def _end(self, _: object = None) -> None:
        self._done = True
        for callback in self._callbacks:
            callback(self)


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
