"""`etl-server serve` and `.start()`, in processes of their own: starting, stopping, failing."""

from __future__ import annotations

import http.client
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.helpers import STARTS, ServerProcess
from tests.raw_client import PATIENCE

SECRET, TOKEN = "s3cr3t-0f-test", "t0ken-0f-test"

TRANSFORM = """
import logging, os, threading
from pathlib import Path
from etl_server import ETLServer

JOURNAL = Path(__file__).with_suffix(".journal")

class Upper(ETLServer):
    def setup(self):
        self.write("setup")

    def teardown(self):
        self.write("teardown")

    def write(self, what):
        with JOURNAL.open("a") as journal:
            journal.write(f"{what} {os.getpid()}\\n")

    def transform(self, data, path, etl_args):
        if data == b"pid":
            return str(os.getpid()).encode()
        if data == b"tell":
            self.logger.info("for the user: %s", self.host_target)
            logging.getLogger("urllib3").warning("GET %s", self.host_target)
            try:
                raise KeyError(self.settings.authn_token.get_secret_value())
            except KeyError as error:
                raise ValueError(f"no answer of {self.host_target}/object") from error
        if etl_args:
            with open(etl_args) as gate:
                gate.read()
        return data.upper()
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A file with one class. Its transform waits for whoever opens the FIFO that its arguments name."""
    file = tmp_path / "upper.py"
    file.write_text(TRANSFORM)
    os.mkfifo(tmp_path / "gate")
    return file


def journal(spec: Path) -> list[list[str]]:
    """What was written, with the process that wrote it."""
    file = spec.with_suffix(".journal")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def put(port: int, body: bytes, etl_args: str = "") -> tuple[int, bytes]:
    return request(port, "PUT", f"/src/a?etl_args={etl_args}", body)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def health_over(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    return response.status


def health_is(port: int, status: int) -> bool:
    try:
        return request(port, "GET", "/health")[0] == status
    except (ConnectionError, http.client.HTTPException):
        return False


# Files


@pytest.mark.parametrize("workers", ["1", "2"])
def test_as_many_files_may_be_open_as_the_hard_limit_allows(tmp_path: Path, workers: str) -> None:
    spec = tmp_path / "limits.py"
    transform = "return '{} {}'.format(*resource.getrlimit(resource.RLIMIT_NOFILE)).encode()"
    spec.write_text(f"import resource\n{SCRIPT.format(main='').replace('return data.upper()', transform)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limited = ("sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", sys.executable)
    environment = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": workers}
    with ServerProcess("-m", "etl_server", "serve", str(spec), environment=environment, python=limited) as server:
        assert put(server.wait_until_listening().port, b"x") == (200, f"{hard} {hard}".encode())


# Stopping


@pytest.mark.parametrize(("workers", "number"), [("1", signal.SIGTERM), ("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_a_server_that_is_told_to_stop_finishes_what_is_in_flight(
    spec: Path, workers: str, number: signal.Signals
) -> None:
    gate = spec.parent / "gate"
    with ServerProcess.serve(str(spec), "--workers", workers) as server, ThreadPoolExecutor() as pool:
        port = server.wait_until_listening().port
        wait_until(lambda: len(journal(spec)) == int(workers))
        in_flight = pool.submit(put, port, b"hello", str(gate))
        probe = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with gate.open("w"):  # once it is open, the transform has opened it too
            server.signal(number)
            wait_until(lambda: health_over(probe) == 503)
            assert not in_flight.done()
        assert in_flight.result() == (200, b"HELLO")
        assert server.wait() == 0
    written = journal(spec)
    assert sorted(what for what, _ in written) == ["setup"] * int(workers) + ["teardown"] * int(workers)
    assert {pid for what, pid in written if what == "setup"} == {pid for what, pid in written if what == "teardown"}
    assert "Traceback" not in server.stderr


def test_idle_connections_do_not_keep_a_server_from_stopping(spec: Path) -> None:
    with ServerProcess.serve(str(spec)) as server:
        port = server.wait_until_listening().port
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        idle.request("PUT", "/src/a", b"x")
        assert idle.getresponse().read() == b"X"
        with connect(f"ws://127.0.0.1:{port}/ws") as websocket:
            websocket.send(b"{}")
            websocket.send(b"x")
            assert websocket.recv(PATIENCE) == b"X"
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        assert server.wait() == 0
        idle.close()


def test_a_transform_that_hangs_does_not_keep_a_server_from_stopping_for_ever(spec: Path) -> None:
    gate = spec.parent / "gate"
    with (
        ServerProcess.serve(str(spec), environment={"ETL_DRAIN_TIMEOUT": "0.1"}) as server,
        socket.create_connection(("127.0.0.1", server.wait_until_listening().port)) as client,
    ):
        client.sendall(b"PUT /src/a?etl_args=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" % bytes(gate))
        with gate.open("w"):
            server.signal(signal.SIGTERM)
            server.wait()


# Workers


def test_a_worker_that_is_killed_is_replaced(spec: Path) -> None:
    with ServerProcess.serve(str(spec), "--workers", "2") as server:
        port = server.wait_until_listening().port
        wait_until(lambda: len(journal(spec)) == 2)
        first = {int(pid) for _, pid in journal(spec)}
        killed = first.pop()
        os.kill(killed, signal.SIGKILL)
        server.wait_for_line(f"worker {killed} died")
        wait_until(lambda: len(journal(spec)) == 3)
        third = int(journal(spec)[2][1])
        assert third != killed
        answered_by = set()

        def both_answer() -> bool:
            answered_by.add(int(put(port, b"pid")[1]))
            return answered_by == {*first, third}

        wait_until(both_answer)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_workers_stop_when_their_supervisor_is_killed(spec: Path) -> None:
    with ServerProcess.serve(str(spec), "--workers", "2") as server:
        server.wait_until_listening()
        wait_until(lambda: len(journal(spec)) == 2)
        server.signal(signal.SIGKILL)
        wait_until(lambda: [what for what, _ in journal(spec)].count("teardown") == 2)


# Failing to start


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ETL_PORT": "eighty"}, ["ETL_PORT", "eighty", "a whole number"]),
        ({"NUM_WORKERS": "many", "ETL_WORKERS": ""}, ["NUM_WORKERS", "many", "a whole number"]),
        ({"AIS_TARGET_URL": f"no-url/{SECRET}"}, ["AIS_TARGET_URL", "http(s)://"]),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(spec: Path, environment: dict[str, str], words: list[str]) -> None:
    with ServerProcess.serve(str(spec), environment=environment) as server:
        assert server.wait() == 2
    assert len(server.lines) == 1
    assert all(word in server.stderr for word in words), server.stderr
    assert SECRET not in server.stderr


def test_a_class_that_is_not_there_stops_the_start_with_one_line(spec: Path) -> None:
    with ServerProcess.serve(f"{spec}:Lower") as server:
        assert server.wait() == 2
    assert len(server.lines) == 1
    assert "Lower" in server.stderr


def test_a_port_that_is_taken_stops_the_start_with_one_line(spec: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with ServerProcess.serve(str(spec), "--port", port, "--workers", "2") as server:
            assert server.wait() == 2
    assert len(server.lines) == 1
    assert port in server.stderr
    assert journal(spec) == []


SETUP = """
import sys
from etl_server import ETLServer

class Fails(ETLServer):
    {setup}

    def transform(self, data, path, etl_args):
        return data
"""


@pytest.mark.parametrize(
    ("setup", "workers"),
    [
        ("def setup(self): raise RuntimeError('no model file')", "2"),
        ("async def setup(self): raise RuntimeError('no model file')", "1"),
        ("def setup(self): sys.exit('no model file')", "1"),
        ("def __init__(self): raise RuntimeError('no model file')", "1"),
        ("def __init__(self): sys.exit('no model file')", "1"),
        ("def __init__(self): sys.exit('no model file')", "2"),
    ],
)
def test_a_setup_that_fails_ends_the_server_with_its_reason(tmp_path: Path, setup: str, workers: str) -> None:
    file = tmp_path / "fails.py"
    file.write_text(SETUP.format(setup=setup))
    with ServerProcess.serve(str(file), "--workers", workers) as server:
        assert server.wait() != 0
    reasons = [
        line for line in server.lines if "no model file" in line and "raise " not in line and "exit(" not in line
    ]
    assert 1 <= len(reasons) <= int(workers) * 2
    # What the server itself says of it can be found without reading a traceback.
    assert any(re.search(r" ERROR .*no model file", line) for line in server.lines), server.stderr


OWN_SESSION = """
from etl_server import ETLServer

class Own(ETLServer):
    @property
    def session(self):
        raise RuntimeError("no token file")

    def transform_stream(self, reader, path, etl_args):
        yield reader.read()
"""


def test_whatever_else_keeps_a_server_from_starting_is_the_reason_in_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_SESSION)
    with ServerProcess.serve(str(tmp_path / "own.py")) as server:
        assert server.wait() == 3
    assert server.lines[-1].endswith("setup() failed: RuntimeError: no token file")


def test_a_class_without_a_transform_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "neither.py"
    file.write_text("from etl_server import ETLServer\nclass Neither(ETLServer): pass\n")
    with ServerProcess.serve(str(file)) as server:
        assert server.wait() != 0
    assert "Neither must override transform() or transform_stream()" in server.stderr


# Scripts


SCRIPT = """
import sys
from etl_server import ETLServer

class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        return data.upper()

{main}
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_start_serves_from_a_script_and_returns_when_it_is_over(tmp_path: Path, workers: str) -> None:
    script = tmp_path / "script.py"
    main = "if __name__ == '__main__':\n    Upper().start('127.0.0.1', 0)\n    print('it is over', file=sys.stderr)"
    script.write_text(SCRIPT.format(main=main))
    with ServerProcess(str(script), environment={"ETL_WORKERS": workers}) as server:
        port = server.wait_until_listening().port
        assert put(port, b"hello") == (200, b"HELLO")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.lines[-1] == "it is over"
    assert "of its own" not in server.stderr  # it has nothing that the others would lack


@pytest.mark.parametrize("workers", ["1", "2"])
def test_start_says_what_its_workers_do_not_get_of_an_instance(tmp_path: Path, workers: str) -> None:
    script = tmp_path / "script.py"
    init = "    def __init__(self, suffix=b''):\n        super().__init__()\n        self.suffix = suffix\n"
    text = SCRIPT.format(main="Upper(b'!').start('127.0.0.1', 0)").replace("data.upper()", "data.upper() + self.suffix")
    script.write_text(text.replace("    def transform", f"{init}    def transform"))
    with ServerProcess(str(script), environment={"ETL_WORKERS": workers}) as server:
        port = server.wait_until_listening().port
        assert put(port, b"hello") == (200, b"HELLO!" if workers == "1" else b"HELLO")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    told = [line for line in server.lines if "without what this one was given or has set (suffix)" in line]
    assert len(told) == (workers == "2")


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(main="Upper().start('127.0.0.1', 0)"))
    with ServerProcess(str(script), environment={"ETL_WORKERS": "2"}) as server:
        port = server.wait_until_listening().port
        assert put(port, b"hello") == (200, b"HELLO")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_script_whose_port_is_taken_says_so_in_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        script.write_text(SCRIPT.format(main=f"Upper().start('127.0.0.1', {port})"))
        with ServerProcess(str(script), environment={"ETL_WORKERS": "1"}) as server:
            assert server.wait() != 0
    assert str(port) in server.lines[-1]
    assert "free" in server.lines[-1]


# Options and logs


def test_options_win_over_the_environment(spec: Path) -> None:
    environment = {"ETL_HOST": "256.0.0.1", "ETL_PORT": "99999", "ETL_WORKERS": "none", "ETL_LOG_LEVEL": "shout"}
    options = ("--host", "127.0.0.1", "--port", "0", "--workers", "1", "--log-level", "INFO")
    with ServerProcess.serve(str(spec), *options, environment=environment) as server:
        assert put(server.wait_until_listening().port, b"hello") == (200, b"HELLO")


def test_a_class_may_be_one_of_several(tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(SCRIPT.format(main="class Lower(Upper):\n    def transform(self, data, *_): return data.lower()"))
    with ServerProcess.serve(f"{file}:Lower") as server:
        assert put(server.wait_until_listening().port, b"Hello") == (200, b"hello")


def test_direct_fqn_gives_the_transform_a_path(tmp_path: Path) -> None:
    file = tmp_path / "@ais" / "src" / "%ob" / "a"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"content")
    spec = tmp_path / "tells.py"
    spec.write_text(SCRIPT.format(main="Upper.transform = lambda self, data, *_: repr(data).encode()"))
    fqn = str(file).replace("%", "%2525").replace("/", "%252F")
    with ServerProcess.serve(str(spec), "--direct-fqn") as server:
        port = server.wait_until_listening().port
        assert request(port, "PUT", f"/src/a?etl_fqn={fqn}", b"") == (200, repr(str(file)).encode())


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_no_secret_is_in_logs_or_answers_whatever_the_level(spec: Path, level: str) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        netloc = f"127.0.0.1:{refusing.getsockname()[1]}"
        target = f"http://{netloc}/v1/etl/_object/etl/{SECRET}"
        environment = {"AIS_TARGET_URL": target, "AIS_AUTHN_TOKEN": TOKEN, "ETL_LOG_LEVEL": level, "ETL_PORT": "0"}
        port = 0
        if level == "warning":  # then it does not say where it listens
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            environment["ETL_PORT"] = str(port)
        with ServerProcess.serve(str(spec), environment=environment) as server:
            port = port or server.wait_until_listening().port
            wait_until(lambda: health_is(port, 200))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            answers = b""
            for method, path, body, headers in (
                ("PUT", "/src/a", b"tell", {}),
                ("GET", "/ais%2F@%23%2Fsrc%2Fa", None, {}),
                ("PUT", "/src/a", b"x", {"ais-node-url": f"http://{netloc}/ais%2F@%23%2Fdst%2Fa"}),
                ("POST", f"/download?object_to=a&original_url={target}", b"", {}),
            ):
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                assert response.status >= 500
                answers += response.read()
            connection.close()
            with connect(f"ws://127.0.0.1:{port}/ws") as websocket:
                websocket.send(b"{}")
                websocket.send(b"tell")
                with pytest.raises(ConnectionClosed) as closed:
                    websocket.recv(PATIENCE)
                answers += str(closed.value).encode()
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
    shown = server.stderr + answers.decode()
    assert "no answer of" in shown
    assert "GET " in server.stderr
    assert ("listening" in server.stderr) == ("for the user" in server.stderr) == (level == "debug")
    assert SECRET not in shown
    assert TOKEN not in shown


def test_an_object_leaves_no_line_in_the_log(spec: Path) -> None:
    with ServerProcess.serve(str(spec)) as server:
        port = server.wait_until_listening().port
        for _ in range(3):
            assert put(port, b"hello")[0] == 200
            assert request(port, "GET", "/health") == (200, b"Running")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert [line for line in server.lines if "listening" not in line and "stopping" not in line] == []
