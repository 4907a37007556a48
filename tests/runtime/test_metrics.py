"""`/metrics`: every object is counted once, the way it came and as it ended, in every process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import platform
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import etl_server
from etl_server import ETLServer
from etl_server.runtime.counts import Counts, Tally
from etl_server.runtime.metrics import BYTES, SECONDS, Families, Places
from etl_server.testing import Target, pipeline
from tests.conftest import Serve
from tests.helpers import ROOT, STARTS, ServerProcess, ais_file, eventually
from tests.raw_client import PATIENCE, RawClient
from tests.stages import STORED, Stage, answering, refusing, resetting, response

from .conftest import Drive
from .transforms import ALL_UPPER, STREAMS, Upper

CONTENT = b"content of it"


class Numbers:
    """The samples of a page."""

    def __init__(self, page: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(page)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """A sample; 0 where there is none."""
        return self._samples.get((name, frozenset(labels.items())), 0)

    def requests(self) -> dict[tuple[str, str], float]:
        """The finished objects, by way and status."""
        return {
            (labels["way"], labels["status"]): value
            for labels, value in ((dict(labels), value) for (name, labels), value in self._samples.items())
            if "way" in labels and "status" in labels and value
        }


def scrape(port: int, accept: str = "") -> tuple[str, str]:
    """The page, and its content type."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode(), response.headers["content-type"]
    finally:
        connection.close()


async def numbers(port: int) -> Numbers:
    page, _ = await asyncio.to_thread(scrape, port)
    return Numbers(page)


async def counted(port: int, expected: dict[tuple[str, str], float], **gauges: float) -> Numbers:
    """The numbers, once so many objects are finished, and the gauges are what they are to become.

    An answer is counted as it has been sent, and what it held is given back after that.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = await numbers(port)
        now = {name: seen(name) for name in gauges}
        if seen.requests() == expected and now == gauges:
            return seen
        assert time.monotonic() < deadline, (seen.requests(), now)
        await asyncio.sleep(0.02)


class Raises(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        if etl_args:
            raise ValueError(etl_args)
        return data


class RaisesMidway(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield b"half of it"
        time.sleep(0.05)
        raise ValueError("midway")


class Gated(ETLServer):
    gate = threading.Event()
    execution = "thread"

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        assert self.gate.wait(PATIENCE)
        return data


# Ways


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_each_way_is_counted_with_its_bytes_and_its_time(
    serve: Serve, drive: Drive, target: Target, tmp_path: Path, cls: type[ETLServer]
) -> None:
    (tmp_path / "src").mkdir(exist_ok=True)
    (tmp_path / "src" / "object").write_bytes(CONTENT)
    file = ais_file(tmp_path / "mp", "object", CONTENT)
    live = serve(cls, host_target=target.url)
    driver = await drive(live)
    async with (
        Stage(answering(response(200, CONTENT))) as origin,
        driver.websocket() as socket,
        RawClient(live.port) as raw,
    ):
        assert (await driver.push("src", "object")).body == CONTENT.upper()
        assert (await driver.pull("src", "object")).body == CONTENT.upper()
        assert (await driver.push("src", "object", fqn=str(file))).body == CONTENT.upper()
        assert (await driver.pull("src", "object", fqn=str(file))).body == CONTENT.upper()
        await socket.send("object", CONTENT)
        await socket.receive()
        await socket.send("object", None, fqn=str(file))
        await socket.receive()
        await raw.send(
            f"POST /download?object_to=a&original_url={origin.url} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await raw.answer()).body == CONTENT.upper()
        await raw.start_chunked("/src/chunked")
        await raw.chunk(CONTENT)
        await raw.chunk(b"")
        assert (await raw.answer()).body == CONTENT.upper()
    ways = {"push": 2, "pull": 1, "fqn": 2, "websocket": 2, "download": 1}
    finished: dict[tuple[str, str], float] = {(way, "200"): count for way, count in ways.items()}
    seen = await counted(live.port, finished, etl_in_flight=0, etl_admitted_bytes=0)
    for way, count in ways.items():
        assert seen("etl_transform_seconds_count", way=way) == count
        assert seen("etl_transform_seconds_sum", way=way) > 0
    for direction in ("in", "out"):
        assert seen("etl_object_bytes_count", direction=direction) == 8
        assert seen("etl_object_bytes_sum", direction=direction) == 8 * len(CONTENT)
        assert seen("etl_object_bytes_bucket", direction=direction, le="64.0") == 8


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_a_direct_put_is_counted_by_what_becomes_of_it(
    serve: Serve, drive: Drive, backoffs: list[float], target: Target, cls: type[ETLServer]
) -> None:
    last, first = serve(cls, host_target=target.url), serve(cls, host_target=target.url)
    driver = await drive(first)
    assert (await driver.push("src", "a", data=CONTENT, pipeline=target.destination("dst", "a"))).status == 204
    assert (await driver.push("src", "a", data=CONTENT, pipeline=pipeline(last.url))).status == 200
    to_target = pipeline(last.url, destination=target.destination("dst", "b"))
    assert (await driver.push("src", "b", data=CONTENT, pipeline=to_target)).status == 204
    async with driver.websocket() as socket:
        await socket.send("c", CONTENT, pipeline=target.destination("dst", "c"))
        assert (await socket.receive()).kind == "text"
    with refusing() as nobody:
        assert (await driver.push("src", "a", data=CONTENT, pipeline=f"http://{nobody}")).status == 502
    async with Stage(answering(response(507, b"full"))) as full:
        assert (await driver.push("src", "a", data=CONTENT, pipeline=full.url)).status == 507
    statuses: dict[tuple[str, str], float] = {
        ("push", "200"): 1, ("push", "204"): 2, ("push", "502"): 1, ("push", "507"): 1, ("websocket", "204"): 1,
    }  # fmt: skip
    seen = await counted(first.port, statuses)
    results = {"delivered": 3, "answered": 1, "unreachable": 1, "rejected": 1}
    assert {result: seen("etl_direct_puts_total", result=result) for result in results} == results
    assert seen("etl_delivery_retries_total") == 0
    seen = await counted(last.port, {("push", "200"): 1, ("push", "204"): 1})
    assert seen("etl_direct_puts_total", result="delivered") == 1


async def test_repeats_of_a_direct_put_are_counted_apart(serve: Serve, drive: Drive, backoffs: list[float]) -> None:
    live = serve(Upper)
    driver = await drive(live)
    async with Stage(resetting, resetting, answering(STORED)) as stage:
        assert (await driver.push("src", "a", data=CONTENT, pipeline=stage.url)).status == 204
    seen = await counted(live.port, {("push", "204"): 1})
    assert seen("etl_delivery_retries_total") == len(backoffs) == 2
    assert seen("etl_direct_puts_total", result="delivered") == 1
    assert seen("etl_object_bytes_count", direction="out") == 1


@pytest.mark.parametrize("execution", ["inline", "thread", "auto"])
async def test_many_objects_are_counted_wherever_they_are_transformed(
    serve: Serve, drive: Drive, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    monkeypatch.setattr(Upper, "execution", execution)
    live = serve(Upper)
    driver = await drive(live)
    async with driver.websocket() as socket:
        for number in range(200):
            assert (await driver.push("src", "a", data=b"x" * number)).status == 200
            await socket.send("a", b"y")
            assert (await socket.receive()).data == b"Y"
    large = b"z" * (1 << 20)
    assert (await driver.push("src", "a", data=large)).status == 200
    seen = await counted(live.port, {("push", "200"): 201, ("websocket", "200"): 200})
    assert seen("etl_transform_seconds_count", way="push") == 201
    assert seen("etl_transform_seconds_count", way="websocket") == 200
    total = sum(range(200)) + 200 + len(large)
    assert seen("etl_object_bytes_sum", direction="in") == seen("etl_object_bytes_sum", direction="out") == total


# Failures


async def test_failures_are_counted_with_their_status(serve: Serve, drive: Drive, tmp_path: Path) -> None:
    live = serve(Raises, max_body=100)
    driver = await drive(live)
    ais_file(tmp_path, "there", CONTENT)
    missing = str(tmp_path / "@ais" / "src" / "%ob" / "missing")
    assert (await driver.push("src", "a", data=CONTENT, etl_args="no")).status == 500
    assert (await driver.push("src", "a", data=b"x" * 101)).status == 413
    assert (await driver.push("src", "a", data=CONTENT, pipeline=",")).status == 400
    assert (await driver.push("src", "a", fqn=missing)).status == 404
    assert (await driver.pull("src", "a", fqn=missing)).status == 404
    assert (await driver.pull("src", "a")).status == 503
    async with driver.websocket() as socket:
        await socket.send("a", CONTENT, etl_args="no")
        assert (await socket.receive()).code == 1011
    async with RawClient(live.port) as client:
        for method, path in (
            ("DELETE", "/src/a"), ("POST", "/health"), ("PUT", "/health"), ("PUT", "/download"), ("GET", "/health"),
        ):  # fmt: skip
            await client.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await client.answer()
        await client.send("POST /download HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer()).status == 400
    failures: dict[tuple[str, str], float] = {
        ("push", "500"): 1, ("push", "413"): 1, ("push", "400"): 1, ("fqn", "404"): 2, ("pull", "503"): 1,
        ("websocket", "500"): 1, ("download", "400"): 1,
    }  # fmt: skip
    seen = await counted(live.port, failures)
    assert seen("etl_transform_seconds_count", way="push") == 1
    assert seen("etl_object_bytes_count", direction="in") == 0


async def test_an_answer_that_breaks_off_is_no_success(serve: Serve) -> None:
    live = serve(RaisesMidway)
    async with RawClient(live.port) as client:
        await client.put("/src/a", CONTENT)
        answer = await client.answer()
        assert (answer.status, answer.whole) == (200, False)
    seen = await counted(live.port, {("push", "cut"): 1})
    assert seen("etl_transform_seconds_count", way="push") == 1
    assert seen("etl_object_bytes_count", direction="out") == 0


async def test_clients_that_go_away_and_what_is_in_flight(serve: Serve, drive: Drive) -> None:
    Gated.gate.clear()
    live = serve(Gated)
    driver = await drive(live)
    async with driver.websocket() as socket:
        await socket.send("a", CONTENT)
        await socket.send("b", CONTENT)
        async with RawClient(live.port) as client:
            await client.put("/src/a", CONTENT)
            await eventually(lambda: live.worker.admission.memory.used >= 3 * len(CONTENT))
            seen = await numbers(live.port)
            assert seen("etl_in_flight") == 3
            assert seen("etl_admitted_bytes") == live.worker.admission.memory.used
            client.reset()
            await counted(live.port, {("push", "gone"): 1}, etl_in_flight=2)
    await counted(live.port, {("push", "gone"): 1, ("websocket", "gone"): 2}, etl_in_flight=0, etl_admitted_bytes=0)
    Gated.gate.set()


# The page


async def test_a_page_is_what_prometheus_reads(serve: Serve, drive: Drive) -> None:
    live = serve(Upper)
    driver = await drive(live)
    assert (await driver.push("src", "a", data=CONTENT)).status == 200
    page, content_type = await asyncio.to_thread(scrape, live.port)
    assert content_type.startswith("text/plain; version=")
    families = Numbers(page).families
    assert families["etl_build_info"].samples[0].labels == {
        "version": etl_server.__version__,
        "python": platform.python_version(),
        "class_name": "Upper",
    }
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    assert all(family.documentation for family in families.values())
    page, content_type = await asyncio.to_thread(scrape, live.port, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in openmetrics.text_string_to_metric_families(page)}  # type: ignore[no-untyped-call]
    assert names == {name.removesuffix("_total") for name in families}


async def test_only_to_ask_for_the_page_is_no_object(serve: Serve, drive: Drive) -> None:
    live = serve(Upper)
    async with RawClient(live.port) as client:
        await client.send("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.answer("HEAD")
        assert (answer.status, answer.body) == (200, b"")
        await client.put("/metrics", CONTENT)
        assert (await client.answer()).body == CONTENT.upper()
    await counted(live.port, {("push", "200"): 1})


async def test_an_object_that_is_called_metrics_is_had_by_an_escaped_name(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "metrics").write_bytes(CONTENT)
    live = serve(Upper, source=f"file://{tmp_path}")
    async with RawClient(live.port) as client:
        await client.get("/%6detrics")
        assert (await client.answer()).body == CONTENT.upper()
        await client.get("/metrics")
        assert b"etl_requests_total" in (await client.answer()).body


async def test_without_metrics_nothing_is_counted_and_the_path_is_an_objects(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "metrics").write_bytes(CONTENT)
    live = serve(Upper, source=f"file://{tmp_path}", metrics=False)
    async with RawClient(live.port) as client:
        await client.get("/metrics")
        assert (await client.answer()).body == CONTENT.upper()
        await client.put("/src/a", CONTENT)
        assert (await client.answer()).body == CONTENT.upper()
    counts = live.worker.counts
    assert all(way.outcomes == {200: 0} and not way.times.total for way in counts.ways)
    assert counts.taken.total == counts.made.total == 0


async def test_a_route_of_the_users_own_is_not_taken_from_him(serve: Serve) -> None:
    live = serve(Upper)

    async def own() -> str:
        return "mine"

    live.app.add_api_route("/metrics", own)
    vars(live.app).pop("_other_paths", None)  # as if it had been there from the start
    async with RawClient(live.port) as client:
        await client.get("/metrics")
        assert (await client.answer()).body == b'"mine"'


# Buckets


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 256, 257, 1024, 1 << 20, (1 << 20) + 1, 1 << 34, (1 << 34) + 1])
def test_a_size_is_in_the_buckets_that_it_is_not_larger_than(size: int) -> None:
    counts = Counts()
    counts.passed(size, 0)
    counts.push.times.add(size)
    families = Families("Any")
    families.publish(counts, 0, 0)
    page = Numbers(families.page("")[0].decode())
    samples = [sample for sample in page.families["etl_object_bytes"].samples if sample.labels["direction"] == "in"]
    sizes = {float(sample.labels["le"]): sample.value for sample in samples if "le" in sample.labels}
    assert sizes == {bound: size <= bound for bound in (*(2**power for power in BYTES), float("inf"))}
    samples = page.families["etl_transform_seconds"].samples
    times = {float(sample.labels["le"]): sample.value for sample in samples if "le" in sample.labels}
    assert times == {bound: size / 1e9 <= bound for bound in (*(2**power / 1e9 for power in SECONDS), float("inf"))}


def test_buckets_reach_from_microseconds_to_minutes_and_from_bytes_to_gibibytes() -> None:
    assert 2 ** SECONDS[0] / 1e9 < 2e-6
    assert 2 ** SECONDS[-1] / 1e9 > 120
    assert 2 ** BYTES[0] == 64
    assert 2 ** BYTES[-1] == 16 << 30


def test_threads_lose_no_count() -> None:
    times: Tally = Counts().push.thread_times

    def add() -> None:
        for _ in range(20_000):
            times.add(1000)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(times.counts), times.total) == (80_000, 80_000_000)


# Several workers


TRANSFORM = """
import os
from etl_server import ETLServer

class Pid(ETLServer):
    def teardown(self):
        os.write(2, f"teardown of {os.getpid()}\\n".encode())  # at once: the other worker writes there, too

    def transform(self, data, path, etl_args):
        if etl_args:
            with open(etl_args) as gate:
                gate.read()
        return str(os.getpid()).encode()
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the processes of a test have their temporary files."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture
def two_workers(tmp_path: Path, temporary: Path) -> Iterator[ServerProcess]:
    (tmp_path / "pid.py").write_text(TRANSFORM)
    environment = {"TMPDIR": str(temporary)}
    with ServerProcess.serve(f"{tmp_path / 'pid.py'}", "--workers", "2", environment=environment) as server:
        server.wait_until_listening()
        yield server


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def push_to_both(server: ServerProcess, others: frozenset[int] = frozenset()) -> tuple[int, set[int]]:
    """Push until two workers have answered; how many pushes that took, and the workers. `others` have died."""
    workers: set[int] = set()
    count = 0
    deadline = time.monotonic() + STARTS
    while len(workers) < 2:
        assert time.monotonic() < deadline, workers
        status, body = server.put(CONTENT)
        assert status == 200
        workers.add(int(body))
        count += 1
    assert not workers & others
    return count, workers


def idle(seen: Numbers, count: float) -> bool:
    """Whether so many pushes are finished, and nothing else is under way."""
    return seen.requests() == {("push", "200"): count} and seen("etl_in_flight") == seen("etl_admitted_bytes") == 0


def wait_until(server: ServerProcess, condition: Callable[[Numbers], bool]) -> Numbers:
    """The numbers that fulfil it, whoever is asked: several in a row."""
    deadline = time.monotonic() + STARTS
    right = 0
    while right < 8:
        seen = Numbers(scrape(server.port)[0])
        right = right + 1 if condition(seen) else 0
        assert time.monotonic() < deadline, seen.requests()
        time.sleep(0.02)
    return seen


def test_whichever_worker_is_asked_shows_the_sums_of_all(two_workers: ServerProcess) -> None:
    count, _ = push_to_both(two_workers)
    seen = wait_until(two_workers, lambda seen: idle(seen, count))
    assert seen("etl_transform_seconds_count", way="push") == count
    assert seen("etl_object_bytes_sum", direction="in") == count * len(CONTENT)
    assert seen("etl_worker_restarts_total") == 0
    assert len(seen.families["etl_build_info"].samples) == 1


def test_what_a_dead_worker_counted_stays_and_its_gauges_go(two_workers: ServerProcess, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    count, workers = push_to_both(two_workers)
    before = wait_until(two_workers, lambda seen: seen.requests() == {("push", "200"): count})
    with contextlib.ExitStack() as stack:
        hanging = [http.client.HTTPConnection("127.0.0.1", two_workers.port, timeout=PATIENCE) for _ in range(8)]
        for connection in hanging:
            stack.callback(connection.close)
            connection.request("PUT", f"/src/a?etl_args={tmp_path / 'gate'}", CONTENT)
        wait_until(two_workers, lambda seen: seen("etl_in_flight") == 8)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        for worker in workers:
            two_workers.wait_for_line(f"worker {worker} died")
    more, _ = push_to_both(two_workers, frozenset(workers))
    seen = wait_until(two_workers, lambda seen: idle(seen, count + more) and seen("etl_worker_restarts_total") == 2)
    assert seen("etl_transform_seconds_count", way="push") == count + more
    assert seen("etl_transform_seconds_sum", way="push") > before("etl_transform_seconds_sum", way="push")


def test_there_are_never_more_files_and_none_in_the_end(two_workers: ServerProcess, temporary: Path) -> None:
    _, workers = push_to_both(two_workers)
    (directory,) = temporary.glob("etl-server-metrics-*")
    wait_until(two_workers, lambda seen: len(seen.requests()) == 1)
    files = {file.name for file in directory.iterdir()}
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        two_workers.wait_for_line(f"worker {worker} died")
    push_to_both(two_workers, frozenset(workers))
    wait_until(two_workers, lambda seen: seen("etl_worker_restarts_total") == 2)
    assert {file.name for file in directory.iterdir()} == files
    two_workers.signal(signal.SIGTERM)
    assert two_workers.wait() == 0
    assert not directory.exists()


def test_a_server_whose_files_are_gone_goes_on(two_workers: ServerProcess, temporary: Path) -> None:
    _, workers = push_to_both(two_workers)
    (directory,) = temporary.glob("etl-server-metrics-*")
    shutil.rmtree(directory)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        two_workers.wait_for_line(f"worker {worker} died")
    _, others = push_to_both(two_workers, frozenset(workers))
    two_workers.signal(signal.SIGTERM)
    assert two_workers.wait() == 0
    for worker in others:
        assert f"teardown of {worker}" in two_workers.stderr
    assert two_workers.stderr.count("/metrics cannot be brought up to date") == len(others)
    assert "Traceback" not in two_workers.stderr


def test_a_directory_for_the_files_that_is_not_there_stops_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "pid.py").write_text(TRANSFORM)
    nowhere = str(tmp_path / "nowhere")
    with ServerProcess.serve(str(tmp_path / "pid.py"), environment={"PROMETHEUS_MULTIPROC_DIR": nowhere}) as server:
        assert server.wait() == 2
    (line,) = server.lines
    assert f"PROMETHEUS_MULTIPROC_DIR={nowhere}: expected a directory" in line


def test_one_worker_makes_no_files(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "pid.py").write_text(TRANSFORM)
    with ServerProcess.serve(f"{tmp_path / 'pid.py'}", environment={"TMPDIR": str(temporary)}) as server:
        assert server.put(CONTENT)[0] == 200
        wait_until(server, lambda seen: seen.requests() == {("push", "200"): 1})
        assert list(temporary.iterdir()) == []


def test_directories_of_killed_servers_are_removed_and_those_of_others_left(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    left_behind = temporary / "etl-server-metrics-old"
    left_behind.mkdir()
    (left_behind / "counter_0.db").touch()
    first = Places()
    assert not left_behind.exists()
    second = Places()
    assert first.directory.exists()
    first.close()
    second.close()
    assert list(temporary.iterdir()) == []


def test_without_room_for_temporary_files_the_start_stops_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "pid.py").write_text(TRANSFORM)
    code = (
        "import sys, tempfile, errno\n"
        "def none(**_): raise FileNotFoundError(errno.ENOENT, 'No usable temporary directory')\n"
        "tempfile.mkdtemp = none\n"
        "from etl_server.cli import main\n"
        f"sys.argv = ['etl-server', 'serve', {str(tmp_path / 'pid.py')!r}, '--workers', '2', '--port', '0']\n"
        "main()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    with ServerProcess(str(script), environment={"ETL_HOST": "127.0.0.1"}, cwd=ROOT) as server:
        assert server.wait() == 2
    assert "ETL_METRICS" in server.lines[-1]
    assert "Traceback" not in server.stderr


def test_a_file_that_its_worker_is_about_to_fill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "counter_7.db").touch()
    assert Families("Any", str(tmp_path)).page("")[0] == b""


def test_workers_of_another_server_share_the_directory_that_they_are_told(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "pid.py").write_text(TRANSFORM + "\napp = Pid().app\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ("-m", "uvicorn", "--app-dir", str(tmp_path), "--workers", "2", "--port", port, "pid:app")
    with ServerProcess(*options, environment={"PROMETHEUS_MULTIPROC_DIR": str(temporary)}, cwd=ROOT) as server:
        server.wait_for_line("startup complete", 2)
        server.lines.append(f"listening on http://127.0.0.1:{port}")  # it says so in other words
        deadline = time.monotonic() + STARTS
        while not accepts(int(port)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        count, _ = push_to_both(server)
        wait_until(server, lambda seen: seen.requests() == {("push", "200"): count})


def test_scrapes_under_load_disturb_nothing(two_workers: ServerProcess) -> None:
    stop = threading.Event()
    pages: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            pages.append(scrape(two_workers.port)[0])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        connections = [http.client.HTTPConnection("127.0.0.1", two_workers.port, timeout=PATIENCE) for _ in range(4)]
        for number in range(1000):
            connection = connections[number % 4]
            connection.request("PUT", "/src/a", CONTENT)
            assert connection.getresponse().read().isdigit()
        for connection in connections:
            connection.close()
    finally:
        stop.set()
        asking.join()
    totals = [Numbers(page)("etl_requests_total", way="push", status="200") for page in pages]
    assert totals == sorted(totals)
    assert len(pages) > 1
    wait_until(two_workers, lambda seen: seen.requests() == {("push", "200"): 1000})
