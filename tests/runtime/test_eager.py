"""Work that is started without a task."""

from __future__ import annotations

import asyncio

from etl_server.runtime.eager import start_eagerly


async def test_work_that_waits_for_nothing_needs_no_task() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    assert start_eagerly(work()) is None
    assert done == [1]


async def test_work_that_waits_goes_on_in_a_task() -> None:
    gate = asyncio.get_running_loop().create_future()
    done: list[str] = []

    async def work() -> None:
        done.append(await gate)

    task = start_eagerly(work())
    assert task is not None
    gate.set_result("through")
    await task
    assert done == ["through"]


async def test_work_that_is_cancelled_before_the_first_step_of_its_task_cleans_up() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    task = start_eagerly(work())
    assert task is not None
    task.cancel()
    await asyncio.wait((task,), timeout=5)
    assert seen == ["cancelled", "cleaned up"]
    assert task.cancelled()
