"""From ready to finished, in processes of their own: no object fails because a server starts or stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from etl_server.testing import Target
from tests.helpers import ServerProcess, eventually, free_port, refused
from tests.raw_client import PATIENCE, RawAnswer, RawClient

TRANSFORM = """
import os, time
from pathlib import Path
from etl_server import ETLServer

HERE = Path(__file__).parent

def wait_for(gate):
    with open(HERE / gate) as file:
        file.read()

class Upper(ETLServer):
    execution = os.environ.get("EXECUTION", "auto")

    def __init__(self):
        super().__init__()
        if os.environ.get("SLOW") == "init":
            wait_for("setup")

    def setup(self):
        if os.environ.get("SLOW") == "setup":
            wait_for("setup")

    def teardown(self):
        if os.environ.get("BAD_END"):
            raise RuntimeError("the index is not written")
        time.sleep(float(os.environ.get("SLOW_END", 0)))

    def transform(self, data, path, etl_args):
        if etl_args:
            wait_for(etl_args)
        return data.upper()
"""

HANG = """
            while True:
                try:
                    wait_for(etl_args)
                except Exception:
                    pass
"""

LONG_LINGER = """
import sys
from etl_server.cli import main
from etl_server.runtime import lifecycle

lifecycle.LINGER = 30
sys.argv = ["etl-server", "serve", sys.argv[1]]
main()
"""


FROZEN = """
import gc
from etl_server import ETLServer

class Frozen(ETLServer):
    def setup(self):
        self.made = [[] for _ in range(100_000)]

    def transform(self, data, path, etl_args):
        return b"%d" % gc.get_freeze_count()
"""


BIG = """
import gc
import time
from pathlib import Path
from etl_server import ETLServer

HERE = Path(__file__).parent

class Big(ETLServer):
    def setup(self):
        gc.callbacks.append(self.linger)

    def linger(self, phase, info):  # what is swept before the server listens is as if it were a lot
        if phase == "start" and info["generation"] == 2:
            (HERE / "setup").touch()
            time.sleep(0.5)

    def teardown(self):
        (HERE / "teardown").touch()

    def transform(self, data, path, etl_args):
        return data
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A file with a class. With arguments, its transform waits for whoever opens the FIFO that they name."""
    file = tmp_path / "upper.py"
    file.write_text(TRANSFORM)
    for gate in ("setup", "gate"):
        os.mkfifo(tmp_path / gate)
    return file


async def ask_until(client: RawClient, status: int) -> RawAnswer:
    """Ask for the health over one connection, until the answer is as wanted."""
    while True:
        await client.get("/health")
        answer = await client.answer()
        if answer.status == status:
            return answer
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def open_gate(gate: Path) -> Iterator[None]:
    """Until the end of the block, whoever waits at the gate goes on waiting; they are there when it begins."""
    with gate.open("w"):
        yield


# Ready


def test_garbage_collections_leave_alone_what_setup_has_made(tmp_path: Path) -> None:
    (tmp_path / "frozen.py").write_text(FROZEN)
    with ServerProcess.serve(str(tmp_path / "frozen.py")) as server:
        status, body = server.put(b"x")
    assert status == 200
    assert int(body) > 100_000


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_takes_no_connection_before_its_setup_is_done(spec: Path, workers: str) -> None:
    port = free_port()
    environment = {"SLOW": "setup", "ETL_PORT": str(port)}
    with ServerProcess.serve(str(spec), "--workers", workers, environment=environment) as server:
        with open_gate(spec.parent / "setup"):
            assert refused(port)
            assert server.lines == []
        await asyncio.to_thread(server.wait_until_listening)
        async with RawClient(port) as client:
            await client.get("/health")
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"Running")


async def test_a_server_that_is_told_to_stop_between_setup_and_listening_tears_down(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(BIG)
    with ServerProcess.serve(str(tmp_path / "big.py")) as server:
        await eventually((tmp_path / "setup").exists)
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    assert (tmp_path / "teardown").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("slow", ["init", "setup"])
async def test_a_server_that_is_told_to_stop_before_it_is_ready_ends_at_once(
    spec: Path, slow: str, workers: str
) -> None:
    environment = {"SLOW": slow, "ETL_DRAIN_TIMEOUT": "1000"}
    with (
        ServerProcess.serve(str(spec), "--workers", workers, environment=environment) as server,
        open_gate(spec.parent / "setup"),
    ):
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("command", [["etl_server", "serve"], ["etl_server.bootstrap"]])
def test_a_signal_that_has_no_default_action_ends_a_server_that_still_imports_the_class(
    spec: Path, command: list[str]
) -> None:
    """To be ignored is what a signal without a handler is in the first process of a container."""
    spec.write_text(
        f"print('importing', flush=True, file=__import__('sys').stderr)\nopen({str(spec.parent / 'gate')!r})"
    )
    ignoring = ("sh", "-c", 'trap "" TERM; exec "$@"', "sh", sys.executable)
    with ServerProcess("-m", *command, str(spec), environment=LOCAL, python=ignoring) as server:
        server.wait_for_line("importing")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_two_servers_that_want_one_port_at_the_same_time_do_not_share_it(spec: Path) -> None:
    port = str(free_port())
    with ServerProcess.serve(str(spec), environment={"SLOW": "setup", "ETL_PORT": port}) as late:
        gate = (spec.parent / "setup").open("w")
        with ServerProcess.serve(str(spec), "--port", port) as early:
            early.wait_until_listening()
            gate.close()
            assert late.wait() == 3
    assert f"ETL_PORT={port}: expected an address that is free" in late.lines[-1]


# Stopping


async def test_a_stopping_server_stops_accepting_and_finishes(spec: Path) -> None:
    gate = spec.parent / "gate"
    with ServerProcess.serve(str(spec)) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as client, RawClient(port) as probe:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(gate):
                server.signal(signal.SIGTERM)
                health = await ask_until(probe, 503)
                assert (health.body, health.headers["connection"]) == (b"Draining", "close")
                await eventually(lambda: refused(port))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"HELLO", "close")
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_request_on_an_idle_connection_is_still_answered(spec: Path) -> None:
    with ServerProcess("-c", LONG_LINGER, str(spec), environment=LOCAL) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as busy, RawClient(port) as idle, RawClient(port) as fresh:
            await idle.put("/src/a", b"one")
            assert (await idle.answer()).headers.get("connection") is None
            server.signal(signal.SIGTERM)
            await ask_until(busy, 503)
            await asyncio.sleep(0.5)  # a server that closes idle connections would have done it by now
            for client in (idle, fresh):
                await client.put("/src/a", b"two")
                answer = await client.answer()
                assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"TWO", "close")
        assert await asyncio.to_thread(server.wait) == 0


async def test_connections_that_wait_to_be_accepted_are_served(spec: Path) -> None:
    """While the loop stands still, the system takes connections for it: more than at any other moment."""
    gate = spec.parent / "gate"
    with ServerProcess.serve(str(spec), environment={"EXECUTION": "inline"}) as server:
        port = server.wait_until_listening().port
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(RawClient(port))
            await first.put("/src/a?etl_args=gate", b"hello")
            with open_gate(gate):
                server.signal(signal.SIGTERM)
                waiting = [await stack.enter_async_context(RawClient(port)) for _ in range(20)]
                for client in waiting:
                    await client.put("/src/a", b"waited")
                await asyncio.sleep(1.2)  # until the time for new connections is over
            for client in (first, *waiting):
                assert (await client.answer()).status == 200
        assert await asyncio.to_thread(server.wait) == 0


async def test_new_connections_are_taken_as_long_as_load_balancers_need(spec: Path) -> None:
    with ServerProcess.serve(str(spec), environment={"ETL_DRAIN_DELAY": "2"}) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as probe:
            server.signal(signal.SIGTERM)
            await ask_until(probe, 503)
        await asyncio.sleep(0.5)  # a server that nobody is connected to would have ended
        async with RawClient(port) as client:
            await client.put("/src/a", b"hello")
            assert (await client.answer()).body == b"HELLO"
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_websocket_that_comes_while_the_server_stops_does_not_hold_it_up(spec: Path) -> None:
    with ServerProcess.serve(str(spec), environment={"ETL_DRAIN_DELAY": "0.5"}) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as probe:
            server.signal(signal.SIGTERM)
            await ask_until(probe, 503)
        async with connect(f"ws://127.0.0.1:{port}/ws") as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert await asyncio.to_thread(server.wait) == 0


async def test_what_is_not_finished_in_time_is_cut_and_told_by_the_exit_code(spec: Path) -> None:
    with ServerProcess.serve(str(spec), environment={"ETL_DRAIN_TIMEOUT": "0.1"}) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                server.signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) == 1
            assert (await client.answer()).status == 0


async def test_answers_that_a_websocket_has_not_taken_in_time_are_told_by_the_exit_code(spec: Path) -> None:
    """They are made and sent, and with the server they would go from where they wait for the client."""
    spec.write_text(TRANSFORM.replace("data.upper()", "bytes(64 * 1024**2)"))
    with ServerProcess.serve(str(spec), environment={"ETL_DRAIN_TIMEOUT": "1.5"}) as server:
        port = server.wait_until_listening().port
        async with connect(f"ws://127.0.0.1:{port}/ws", max_size=None) as socket:
            await socket.send(b"{}")
            await socket.send(b"x")
            await asyncio.wait_for(await socket.ping(), PATIENCE)
            socket.transport.pause_reading()
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 1
            socket.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                await socket.recv()
    assert "1 connection(s) had not taken their answers in time" in server.stderr


WATCHED = {"EXECUTION": "inline", "ETL_WATCHDOG": "0.5"}


async def test_a_server_whose_loop_stands_still_says_where_and_ends(spec: Path) -> None:
    with ServerProcess.serve(str(spec), environment=WATCHED) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                assert await asyncio.to_thread(server.wait) == 1
            assert (await client.answer()).status == 0
    assert re.search(
        r"ERROR .* the event loop stood still for ETL_WATCHDOG=0\.5 s, at:\\n.*in wait_for", server.lines[-1]
    )


async def test_a_worker_whose_loop_stands_still_is_replaced(spec: Path) -> None:
    with ServerProcess.serve(str(spec), "--workers", "2", environment=WATCHED) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                assert (await client.answer()).status == 0
            await asyncio.to_thread(server.wait_for_line, r"worker \d+ died: it ended with exit code 1; another one is")
        async with RawClient(port) as client:
            await client.put("/src/a", b"hello")
            assert (await client.answer()).body == b"HELLO"
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_server_whose_loop_turns_is_not_ended(spec: Path) -> None:
    """Neither by a transform in a thread, nor by having been stopped itself; nor by a teardown that takes longer."""
    gate = spec.parent / "gate"
    with ServerProcess.serve(str(spec), environment={**WATCHED, "EXECUTION": "thread", "SLOW_END": "2"}) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(gate):
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(2)  # longer than it may stand still
                server.signal(signal.SIGCONT)
                await asyncio.sleep(2)
                server.signal(signal.SIGTERM)
                await asyncio.sleep(1)
            assert (await client.answer()).body == b"HELLO"
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_second_interrupt_cuts_what_is_in_flight_and_the_exit_code_tells(spec: Path) -> None:
    with ServerProcess.serve(str(spec)) as server:
        port = server.wait_until_listening().port
        async with RawClient(port) as client, RawClient(port) as probe:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                server.signal(signal.SIGINT)
                await ask_until(probe, 503)
                server.signal(signal.SIGINT)
                assert await asyncio.to_thread(server.wait) == 1
            assert (await client.answer()).status == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_teardown_that_raises_is_told_by_the_exit_code(spec: Path, workers: str) -> None:
    with ServerProcess.serve(str(spec), "--workers", workers, environment={"BAD_END": "1"}) as server:
        server.wait_until_listening()
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
    assert "the index is not written" in server.stderr


async def test_a_transform_that_holds_up_the_loop_does_not_keep_a_server_from_ending(spec: Path) -> None:
    environment = {"EXECUTION": "inline", "ETL_DRAIN_TIMEOUT": "0.1"}
    with ServerProcess.serve(str(spec), environment=environment) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                server.signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) == 1
    assert "ETL_DRAIN_TIMEOUT=0.1" in server.lines[-1]


UNWRITABLE = """
import logging
def refuse(record):
    if "did not end" in record.getMessage():
        raise RuntimeError("reentrant call")
    return True
logging.getLogger("etl_server.serve").addFilter(refuse)
"""


async def test_a_log_that_cannot_be_written_does_not_keep_a_server_from_ending(spec: Path) -> None:
    spec.write_text(UNWRITABLE + TRANSFORM.replace("            wait_for(etl_args)", HANG))
    environment = {"EXECUTION": "inline", "ETL_DRAIN_TIMEOUT": "0.1"}
    with ServerProcess.serve(str(spec), environment=environment) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            await client.put("/src/a?etl_args=gate", b"hello")
            with open_gate(spec.parent / "gate"):
                server.signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) == 1


async def test_one_worker_that_is_told_to_stop_leaves_the_port_to_the_others(tmp_path: Path, spec: Path) -> None:
    spec.write_text("import os\n" + TRANSFORM.replace("data.upper()", "str(os.getpid()).encode()"))
    with ServerProcess.serve(str(spec), "--workers", "2") as server:
        port = server.wait_until_listening().port

        async def answered_by() -> int:
            async with RawClient(port) as client:
                await client.put("/src/a", b"x")
                return int((await client.answer()).body)

        told = await answered_by()
        os.kill(told, signal.SIGTERM)
        await asyncio.to_thread(server.wait_for_line, f"worker {told} died")
        assert told not in [await answered_by() for _ in range(20)]
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


# A rolling restart

LOCAL = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "1"}


class Load:
    """Clients of every kind, which send objects without a pause, and what became of these."""

    def __init__(self, port: int, target: Target) -> None:
        self._port = port
        self._target = target
        self._over = False
        self._number = 0
        self.failed: list[str] = []
        self.done: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        clients = [self._push, self._push, self._keep, self._keep, self._put, self._put, self._websocket]
        tasks = [asyncio.create_task(client()) for client in clients]
        try:
            yield
        finally:
            self._over = True
            await asyncio.gather(*tasks)

    async def goes_on(self) -> None:
        """Wait until every kind has had objects done from now on."""
        before = dict(self.done)
        await eventually(lambda: all(self.done.get(kind, 0) >= before.get(kind, 0) + 20 for kind in self.KINDS))

    KINDS = ("push", "keep-alive", "direct put", "websocket")

    def _object(self) -> bytes:
        self._number += 1
        return f"object {self._number}".encode()

    def _ended(self, kind: str, data: bytes, outcome: str = "") -> None:
        self.done[kind] = self.done.get(kind, 0) + 1
        if outcome:
            self.failed.append(f"{kind} {data.decode()}: {outcome}")

    async def _push(self) -> None:
        """A connection for each object."""
        while not self._over:
            data = self._object()
            try:
                async with RawClient(self._port) as client:
                    await client.put("/src/a", data)
                    answer = await client.answer()
            except OSError as error:
                self._ended("push", data, repr(error))
            else:
                self._ended("push", data, "" if answer.body == data.upper() else repr(answer))

    async def _keep(self) -> None:
        """One connection for all, until an answer says that it is the last."""
        while not self._over:
            async with RawClient(self._port) as client:
                closing = False
                while not (closing or self._over):
                    data = self._object()
                    await client.put("/src/a", data)
                    answer = await client.answer()
                    self._ended("keep-alive", data, "" if answer.body == data.upper() else repr(answer))
                    closing = answer.headers.get("connection") == "close"

    async def _put(self) -> None:
        """As `_keep`, and the results go to the target."""
        while not self._over:
            async with RawClient(self._port) as client:
                closing = False
                while not (closing or self._over):
                    data = self._object()
                    name = data.decode().replace(" ", "-")
                    await client.put(f"/src/{name}", data, f"ais-node-url: {self._target.destination('dst', name)}\r\n")
                    answer = await client.answer()
                    delivered = answer.status == 204 and self._target.path("dst", name).read_bytes() == data.upper()
                    self._ended("direct put", data, "" if delivered else repr(answer))
                    closing = answer.headers.get("connection") == "close"

    async def _websocket(self) -> None:
        """Four objects on their way; those that a server closed before it took them are sent to the next."""
        sent: list[bytes] = []
        while not self._over:
            async with connect(f"ws://127.0.0.1:{self._port}/ws") as socket:
                again, sent = sent, []
                try:
                    while not self._over:
                        while len(sent) < 4:
                            sent.append(again.pop(0) if again else self._object())
                            await socket.send(b"{}")
                            await socket.send(sent[-1])
                        answer = await socket.recv()
                        data = sent.pop(0)
                        self._ended("websocket", data, "" if answer == data.upper() else repr(answer))
                except ConnectionClosed as closed:
                    code = closed.rcvd.code if closed.rcvd else None
                    if code not in (1001, 1012):
                        self._ended("websocket", sent[0], f"closed with {code}")
                    sent += again


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_not_one_object_fails_under_a_rolling_restart(spec: Path, target: Target, workers: str) -> None:
    """Old and new servers on one port, by `ETL_REUSE_PORT`."""
    port = free_port()
    environment = {"ETL_REUSE_PORT": "true", "ETL_PORT": str(port), "AIS_TARGET_URL": target.url}
    environment["ETL_WORKERS"] = workers

    async def start() -> ServerProcess:
        server = stack.enter_context(ServerProcess.serve(str(spec), environment=environment))
        await asyncio.to_thread(server.wait_until_listening)
        return server

    with contextlib.ExitStack() as stack:
        server = await start()
        load = Load(port, target)
        async with load.running():
            await load.goes_on()
            for _ in range(2):
                old, server = server, await start()
                await load.goes_on()
                old.signal(signal.SIGTERM)
                assert await asyncio.to_thread(old.wait) == 0
                await load.goes_on()
    assert load.failed == []
