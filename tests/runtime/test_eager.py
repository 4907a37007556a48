"""Work that is started without a task."""

from __future__ import annotations

import asyncio

import pytest

from etl_server.runtime.eager import Soon, start_eagerly


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
    assert isinstance(task, asyncio.Task)
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
    assert isinstance(task, asyncio.Task)
    task.cancel()
    await asyncio.wait((task,), timeout=5)
    assert seen == ["cancelled", "cleaned up"]
    assert task.cancelled()


async def test_work_that_waits_for_what_comes_soon_needs_no_task() -> None:
    gate: Soon[str] = Soon()
    done: list[object] = []

    async def work() -> None:
        done.append(await gate)
        done.append(asyncio.current_task())

    going = start_eagerly(work())
    assert going is not None
    going.add_done_callback(done.append)
    gate.set_result("through")
    assert not going.done()
    await asyncio.sleep(0)
    assert done == ["through", None, going]
    assert going.done()
    assert not going.cancel()
    going.add_done_callback(done.append)
    await asyncio.sleep(0)
    assert done[3:] == [going]


async def test_work_that_waits_once_more_goes_on_in_a_task() -> None:
    gate: Soon[None] = Soon()
    later = asyncio.get_running_loop().create_future()
    done: list[object] = []

    async def work() -> None:
        await gate
        try:
            await later
        finally:
            done.append(asyncio.current_task())

    going = start_eagerly(work())
    assert going is not None
    going.add_done_callback(done.append)
    gate.set_result(None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert done == []
    assert not going.done()
    assert going.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert isinstance(done[0], asyncio.Task)
    assert done[1:] == [going]
    assert later.cancelled()


@pytest.mark.parametrize("late", [False, True])
async def test_work_that_waits_for_what_comes_soon_can_be_cancelled(late: bool) -> None:
    gate: Soon[None] = Soon()
    seen: list[str] = []

    async def work() -> None:
        try:
            await gate
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    going = start_eagerly(work())
    assert going is not None
    if late:
        gate.set_result(None)
    assert going.cancel()
    for _ in range(4):
        await asyncio.sleep(0)
    assert seen == ["cancelled", "cleaned up"]
    assert going.done()


async def test_what_work_raises_after_a_wait_is_told_to_the_loop() -> None:
    gate: Soon[None] = Soon()
    told: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    async def work() -> None:
        await gate
        raise ValueError("broken")

    going = start_eagerly(work())
    assert going is not None
    gate.set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert going.done()
    assert [str(error) for error in told] == ["broken"]
