"""Worker threads: what runs there, how much of it at once, and what becomes of calls that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from etl_server.runtime.threads import MOST, WorkerThreads
from tests.helpers import eventually


class Gate:
    """Holds threads until it is opened; knows how many came."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.came = 0
        self._lock = threading.Lock()

    def wait(self) -> str:
        with self._lock:
            self.came += 1
        assert self.opened.wait(60), "the gate was never opened"
        return "through"


@pytest.fixture
async def threads() -> AsyncIterator[WorkerThreads]:
    threads = WorkerThreads()
    yield threads
    threads.stop()


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


async def test_a_call_runs_in_another_thread_and_returns_what_it_returns(threads: WorkerThreads) -> None:
    thread, value = await threads.run(lambda value: (threading.current_thread(), value), 7)
    assert value == 7
    assert thread is not threading.current_thread()
    assert thread.daemon


async def test_idle_threads_are_used_again(threads: WorkerThreads) -> None:
    used = {await threads.run(threading.get_ident) for _ in range(20)}
    assert len(used) == 1


async def test_a_call_raises_what_it_raises(threads: WorkerThreads) -> None:
    with pytest.raises(KeyError, match="missing"):
        await threads.run(_raise(KeyError("missing")))


@pytest.mark.parametrize("error", [StopIteration("s"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_what_would_end_the_loop_or_the_thread_comes_as_an_ordinary_error(
    threads: WorkerThreads, error: BaseException
) -> None:
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await threads.run(_raise(error))
    assert await threads.run(lambda: "alive") == "alive"


async def test_calls_that_wait_for_each_other_all_get_a_thread(threads: WorkerThreads) -> None:
    barrier = threading.Barrier(64)
    await asyncio.gather(*(threads.run(barrier.wait, 60) for _ in range(64)))


async def test_there_are_never_more_than_the_most_and_who_gives_up_waiting_leaves_nothing_behind(
    threads: WorkerThreads, gate: Gate
) -> None:
    calls = [asyncio.ensure_future(threads.run(gate.wait)) for _ in range(MOST)]
    await eventually(lambda: gate.came == MOST)
    exits: list[str] = []
    late = asyncio.ensure_future(threads.run(gate.wait, on_exit=lambda: exits.append("late")))
    await asyncio.wait([late], timeout=0.05)
    assert gate.came == MOST
    late.cancel()
    await asyncio.wait([late])
    assert late.cancelled()
    assert exits == ["late"]
    gate.opened.set()
    assert set(await asyncio.gather(*calls)) == {"through"}
    assert gate.came == MOST


async def test_calls_that_hang_and_that_nobody_waits_for_do_not_keep_others_out(
    threads: WorkerThreads, gate: Gate
) -> None:
    exits: list[str] = []
    calls = [asyncio.ensure_future(threads.run(gate.wait, on_exit=lambda: exits.append("e"))) for _ in range(MOST)]
    await eventually(lambda: gate.came == MOST)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert await threads.run(lambda: "in") == "in"
    assert exits == []
    gate.opened.set()
    await eventually(lambda: len(exits) == MOST)


async def test_leaving_is_told_once_and_only_when_the_call_has_really_ended(threads: WorkerThreads, gate: Gate) -> None:
    exits: list[int] = []
    call = asyncio.ensure_future(threads.run(gate.wait, on_exit=lambda: exits.append(gate.opened.is_set())))
    await eventually(lambda: gate.came == 1)
    call.cancel()
    await asyncio.wait([call])
    assert exits == []
    gate.opened.set()
    await eventually(lambda: exits == [True])
    assert await threads.run(gate.wait, on_exit=lambda: exits.append(True)) == "through"
    assert exits == [True, True]


async def test_idle_threads_end_when_all_is_over(gate: Gate) -> None:
    threads = WorkerThreads()
    gate.opened.set()
    used = await asyncio.gather(*(threads.run(threading.current_thread) for _ in range(8)))
    threads.stop()
    await eventually(lambda: not any(thread.is_alive() for thread in used))


def _raise(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call
