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
        work = _Started(work, waiting).run()
    return asyncio.get_running_loop().create_task(work)


class _Started:
    """A coroutine that has run to its first wait, as a new one that goes on from there."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waiting: Any) -> None:
        self._coroutine = coroutine
        self._waiting = waiting

    async def run(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        waiting = self._waiting
        try:
            while True:
                try:
                    value = yield waiting
                except BaseException as error:
                    waiting = self._coroutine.throw(error)
                else:
                    waiting = self._coroutine.send(value)
        except StopIteration:
            return
