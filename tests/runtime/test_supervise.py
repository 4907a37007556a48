"""Workers that die, in processes of their own: who notices, and when it is enough."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.helpers import STARTS, ServerProcess, eventually
from tests.raw_client import RawClient

TRANSFORM = """
import os, signal, sys
from pathlib import Path
from etl_server import ETLServer

HERE = Path(__file__).parent

class Pid(ETLServer):
    def setup(self):
        with (HERE / "starts").open("a") as starts:
            starts.write("1")
        if (HERE / "raise").exists():
            raise RuntimeError("no model\\nfile")
        if (HERE / "crash").exists():
            os.kill(os.getpid(), signal.SIGSEGV)

    def transform(self, data, path, etl_args):
        if etl_args:
            with open(HERE / etl_args) as gate:
                gate.read()
        return str(os.getpid()).encode()
"""

TUNED = """
import sys
from etl_server.cli import main
from etl_server.runtime import supervise

supervise.RESPAWN_DELAY, supervise.MOST_DEATHS, supervise.HEALTHY_AFTER = 0.01, 3, float(sys.argv[2])
sys.argv = ["etl-server", "serve", sys.argv[1]]
main()
"""
LONG_AGO, NEVER = "0", "1000"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A file with a class whose results are the worker's process id."""
    file = tmp_path / "pid.py"
    file.write_text(TRANSFORM)
    os.mkfifo(tmp_path / "gate")
    return file


def tuned(spec: Path, healthy_after: str, workers: int = 2) -> ServerProcess:
    """A server that ends at the third death in a row that comes sooner than that after the start."""
    environment = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": str(workers)}
    return ServerProcess("-c", TUNED, str(spec), healthy_after, environment=environment)


async def pid_over(client: RawClient) -> int:
    await client.put("/src/a", b"x")
    answer = await client.answer()
    assert answer.whole
    return int(answer.body)


async def test_nobody_but_its_clients_notices_that_a_worker_is_killed(spec: Path) -> None:
    with ServerProcess.serve(str(spec), "--workers", "2") as server:
        port = server.wait_until_listening().port
        async with contextlib.AsyncExitStack() as stack:
            by_worker: dict[int, list[RawClient]] = {}

            async def both_have_clients() -> None:
                while len(by_worker) < 2:
                    client = await stack.enter_async_context(RawClient(port))
                    by_worker.setdefault(await pid_over(client), []).append(client)
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(both_have_clients(), STARTS)
            (killed, (victim, *_)), (survivor, (witness, *_)) = by_worker.items()
            over = asyncio.Event()

            async def bear_witness() -> int:
                count = 0
                while not over.is_set():
                    assert await pid_over(witness) == survivor
                    count += 1
                return count

            load = asyncio.create_task(bear_witness())
            await victim.put("/src/a?etl_args=gate", b"x")
            with await asyncio.to_thread((spec.parent / "gate").open, "w"):
                os.kill(killed, signal.SIGKILL)
                answer = await victim.answer()
            assert (answer.status, answer.whole) == (0, False)
            await asyncio.to_thread(server.wait_for_line, f"worker {killed} died: it was ended by SIGKILL")
            await eventually(lambda: (spec.parent / "starts").read_text() == "111")

            async def is_replaced() -> None:
                while True:
                    async with RawClient(port) as client:
                        if await pid_over(client) != survivor:
                            return
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(is_replaced(), STARTS)
            over.set()
            assert await load > 0
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


def test_workers_that_die_at_every_start_end_the_server_with_the_reason(spec: Path) -> None:
    (spec.parent / "crash").touch()
    with tuned(spec, NEVER) as server:
        assert server.wait() == 3
    assert "a worker died 3 times in a row, soon after its start; at last it was ended by SIGSEGV" in server.lines[-1]
    assert len((spec.parent / "starts").read_text()) <= 6


async def test_workers_that_cannot_start_again_end_the_server_with_the_reason(spec: Path) -> None:
    with tuned(spec, NEVER) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            killed = await pid_over(client)
        await eventually(lambda: (spec.parent / "starts").read_text() == "11")
        (spec.parent / "raise").touch()
        os.kill(killed, signal.SIGKILL)
        assert await asyncio.to_thread(server.wait) == 3
    reason = "at last it did not start: setup() failed: RuntimeError: no model file"
    assert server.lines[-1].endswith(reason)


NO_FORK = """
import errno, subprocess, sys
from etl_server.runtime import supervise

real, count, fails = subprocess.Popen, 0, int(sys.argv[2])

class Popen(real):
    def __init__(self, *args, **options):
        global count
        count += "work(" in str(args)
        if count == fails:
            raise OSError(errno.EAGAIN, "no more processes")
        super().__init__(*args, **options)

subprocess.Popen = Popen
""" + TUNED.replace("float(sys.argv[2])", "1000")


async def test_a_worker_that_cannot_be_forked_is_tried_again(spec: Path) -> None:
    environment = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "2"}
    with ServerProcess("-c", NO_FORK, str(spec), "3", environment=environment) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            os.kill(await pid_over(client), signal.SIGKILL)
        await asyncio.to_thread(server.wait_for_line, "it cannot be started again: no more processes")
        await eventually(lambda: (spec.parent / "starts").read_text() == "111")
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


def test_a_first_worker_that_cannot_be_forked_ends_the_server_with_the_reason(spec: Path) -> None:
    environment = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "2"}
    with ServerProcess("-c", NO_FORK, str(spec), "2", environment=environment) as server:
        assert server.wait() == 3
    assert server.lines[-1].endswith("a worker cannot be started: no more processes")
    assert "Traceback" not in server.stderr


WAITS_FOR_EVENTS = (
    """
import signal, threading

real = threading.Event.wait

def wait(self, timeout=None):
    with self._cond:
        signal.raise_signal(signal.SIGTERM)
    return real(self, timeout)

threading.Event.wait = wait
"""
    + TUNED
)


def test_a_signal_may_come_while_the_lock_of_an_event_is_held(spec: Path) -> None:
    environment = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "2"}
    with ServerProcess("-c", WAITS_FOR_EVENTS, str(spec), NEVER, environment=environment) as server:
        server.wait_until_listening()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


async def test_a_worker_that_was_healthy_for_long_may_die_any_number_of_times(spec: Path) -> None:
    with tuned(spec, LONG_AGO) as server:
        port = server.wait_until_listening().port
        for _ in range(4):
            async with RawClient(port) as client:
                killed = await pid_over(client)
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(server.wait_for_line, f"worker {killed} died")
        async with RawClient(port) as client:
            assert await pid_over(client) != killed
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_first_start_that_fails_ends_the_server_at_once_with_its_reason(spec: Path, workers: int) -> None:
    (spec.parent / "raise").touch()
    with tuned(spec, NEVER, workers) as server:
        assert server.wait() == 3
    assert server.lines[-1].endswith("setup() failed: RuntimeError: no model file")
    assert len((spec.parent / "starts").read_text()) <= workers
