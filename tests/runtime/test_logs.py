"""What a server logs: one line for what happens, whatever is in it, and one for each object that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect

from etl_server import ETLServer, Settings
from etl_server.runtime.logs import Finished, JsonFormatter, TextFormatter
from etl_server.testing import Target
from etl_server.wire.names import encode_uname
from tests.conftest import Live, Serve, Transport
from tests.helpers import ServerProcess, ais_file, eventually, free_port, refused
from tests.raw_client import PATIENCE, RawClient
from tests.stages import Stage, answering, refusing, response

from .transforms import UpperStream

SECRET, TOKEN = "s3cr3t-0f-test", "t0ken-0f-test"
FORGED = "a\n2026-01-01 00:00:00,000 ERROR   etl_server[1] forged\r\x1b[2K\u2028b"
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+\[\d+\] \S")

TELLTALE = r"""
import sys, threading, warnings
from etl_server import ETLServer

URL = "https://me:hunter2@store.test/a?x=1&X-Amz-Credential=AKIAME&X-Amz-Signature=5igned&y=2"

class Telltale(ETLServer):
    def transform(self, data, path, etl_args):
        self.logger.info("of %s\n2026-01-01 forged by the user", path)
        self.logger.warning("from %s with Bearer abcdefgh12345", URL)
        self.logger.warning("does not fit: %d", "x")
        warnings.warn("it is\nold")
        thread = threading.Thread(target=lambda: 1 / 0, name="helper")
        thread.start()
        thread.join()
        try:
            raise KeyError(self.settings.authn_token.get_secret_value())
        except KeyError as error:
            raise ValueError(f"no answer\nof {self.host_target}/object nor {URL}") from error
"""


# Formats


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("etl_server.Test", logging.WARNING, __file__, 1, message, args, None)
    vars(made).update(extra)
    return made


@pytest.fixture
def settings() -> Settings:
    return Settings.load(host_target=f"http://target:1/v1/etl/_object/etl/{SECRET}", authn_token=TOKEN)


def test_text_is_one_line_whatever_is_in_it(settings: Settings) -> None:
    line = TextFormatter(settings).format(record("of %s", FORGED))
    assert len(line.splitlines()) == 1
    assert r"of a\n2026-01-01" in line
    assert r"\x1b[2K\u2028b" in line


def test_on_a_terminal_a_line_break_cannot_be_taken_for_an_event(settings: Settings) -> None:
    first, second = TextFormatter(settings, terminal=True).format(record("of %s", FORGED)).splitlines()
    assert TEXT_LINE.match(first)
    assert second.startswith("    2026-01-01")
    assert "\x1b" not in second


def test_json_has_the_text_as_it_is(settings: Settings) -> None:
    line = JsonFormatter(settings).format(record("of %s", FORGED))
    assert len(line.splitlines()) == 1
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event.pop("time"))
    assert event.pop("process") > 0
    assert event == {"level": "warning", "logger": "etl_server.Test", "message": f"of {FORGED}"}


def test_a_failure_has_its_parts_in_json(settings: Settings) -> None:
    failure = Finished("push", "src/a\n", 500, 12, f"Processing error: {TOKEN}", "Traceback:\n  ValueError")
    event = json.loads(JsonFormatter(settings).format(record("%s", failure, finished=failure)))
    assert {name: event[name] for name in ("way", "object", "status", "ms", "message", "traceback")} == {
        "way": "push",
        "object": "src/a\n",
        "status": 500,
        "ms": 12,
        "message": "Processing error: ***",
        "traceback": "Traceback:\n  ValueError",
    }


def test_a_failure_is_one_line_of_text(settings: Settings) -> None:
    failure = Finished("push", FORGED, 500, 12, "no", "Traceback:\n  ValueError")
    line = TextFormatter(settings).format(record("%s", failure, finished=failure))
    assert len(line.splitlines()) == 1
    assert ": 500 after 12 ms: no\\nTraceback:\\n  ValueError" in line
    assert str(failure).count("\n") == 2  # where another formatter writes it: what came from outside breaks no line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET http://target:1/v1/etl/_object/etl/{SECRET}/x", "GET http://target:1/v1/etl/_object/etl/***/x"),
        (f"with {TOKEN}", "with ***"),
        ("http://me:pass@host/a", "http://***@host/a"),
        ("http://me:p@ss@host/a", "http://***@host/a"),
        ("http://host/ais/@%23/a", "http://host/ais/@%23/a"),
        ("?a=1&X-Amz-Signature=abc&b=2", "?a=1&X-Amz-Signature=***&b=2"),
        ("?X-Amz-Credential=a/b&X-Amz-Security-Token=c", "?X-Amz-Credential=***&X-Amz-Security-Token=***"),
        ("?X-Goog-Signature=abc'", "?X-Goog-Signature=***'"),
        ("?sv=1&sig=a%2Fb", "?sv=1&sig=***"),
        ("?AWSAccessKeyId=a&Signature=b&Expires=1", "?AWSAccessKeyId=***&Signature=***&Expires=1"),
        ("%3Fx%3D1%26X-Amz-Signature%3Dabc%26y%3D2", "%3Fx%3D1%26X-Amz-Signature%3D***%26y%3D2"),
        ("?access_token=abc", "?access_token=***"),
        ("Authorization: Bearer abcdefgh.ijkl-m", "Authorization: Bearer ***"),
        ("the bearer of a signature=1 key", "the bearer of a signature=1 key"),
        ("with aws-s3cr3t", "with ***"),
    ],
)
def test_nothing_that_is_secret_is_shown_in_either_format(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-s3cr3t")
    assert TextFormatter(settings).format(record(text)).endswith(f" {shown}")
    assert json.loads(JsonFormatter(settings).format(record("%s", text)))["message"] == shown
    failure = Finished("push", text, 500, 1, text, text)
    event = json.loads(JsonFormatter(settings).format(record("%s", failure, finished=failure)))
    assert [event[name] for name in ("object", "message", "traceback")] == [shown] * 3
    assert TextFormatter(settings).format(record("%s", failure, finished=failure)).count(shown) == 3


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_everything_a_server_says_is_in_that_format(tmp_path: Path, log_format: str) -> None:
    spec = tmp_path / "telltale.py"
    spec.write_text(TELLTALE)
    environment = {
        "ETL_LOG_FORMAT": log_format,
        "ETL_LOG_LEVEL": "debug",
        "AIS_TARGET_URL": f"http://target:1/v1/etl/_object/etl/{SECRET}",
        "AIS_AUTHN_TOKEN": TOKEN,
    }
    with ServerProcess.serve(str(spec), environment=environment) as server:
        async with RawClient(server.wait_until_listening().port) as client:
            await client.put(f"/src/{quote(FORGED)}", b"x")
            assert (await client.answer()).status == 500
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    shown = "\n".join(json.dumps(json.loads(line)) for line in server.lines) if log_format == "json" else server.stderr
    for secret in (SECRET, TOKEN, "hunter2", "AKIAME", "5igned", "abcdefgh12345"):
        assert secret not in shown
    if log_format == "text":
        assert [line for line in server.lines if not TEXT_LINE.match(line)] == []
        (failure,) = [line for line in server.lines if ": 500 after" in line]
    else:
        events = [json.loads(line) for line in server.lines]
        assert {event["level"] for event in events} >= {"info", "warning", "error"}
        (told,) = [event for event in events if "status" in event]
        assert (told["way"], told["object"], told["status"]) == ("push", f"src/{FORGED}", 500)
        assert told["message"].startswith("Processing error: no answer\nof http://target:1/")
        assert "KeyError" in told["traceback"]
        failure = json.dumps(told)
    for words in ("ValueError", "KeyError", "telltale.py"):
        assert words in failure
    for words in ("forged by the user", "it is\\nold", "helper raised", "ZeroDivisionError", "does not fit: %d ('x',)"):
        assert words in shown, words
    assert "uvicorn.error" in shown


# Failures


class Fails(ETLServer):
    """Fails as its arguments say."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        if data == b"fail":
            raise ValueError("no")
        if data == b"slow":
            time.sleep(0.3)
            raise ValueError("late")
        return data


class BreaksOff(ETLServer):
    def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes]:
        yield b"x" * 100_000
        reader.read()
        raise ValueError("no more")


class Hangs(ETLServer):
    async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        await asyncio.sleep(60)
        return data


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """What is logged from WARNING up."""
    caplog.set_level(logging.WARNING)
    kept = Kept()
    logging.getLogger().addHandler(kept)
    yield kept.records
    logging.getLogger().removeHandler(kept)


async def one(records: list[logging.LogRecord]) -> tuple[str, str, int]:
    """Way, object and status of the one failure that is logged; nothing else is."""
    await eventually(lambda: records)
    await asyncio.sleep(0.05)  # for a second one, which there must not be
    ((failure, level),) = [(getattr(record, "finished", None), record.levelname) for record in records]
    assert isinstance(failure, Finished)
    assert level == "WARNING"
    assert failure.ms >= 0
    return failure.way, failure.object, failure.status


@asynccontextmanager
async def client_of(live: Live) -> AsyncIterator[RawClient]:
    async with RawClient(live.port) as client:
        yield client


@pytest.mark.parametrize("warm", [0, 40])
async def test_a_transform_that_fails_is_one_line(serve: Serve, failures: list[logging.LogRecord], warm: int) -> None:
    live = serve(Fails)
    async with client_of(live) as client:
        for _ in range(warm):
            await client.put("/src/a", b"good")
            assert (await client.answer()).status == 200
        await client.put("/src/a%20b", b"fail")
        assert (await client.answer()).status == 500
    assert await one(failures) == ("push", "src/a b", 500)
    assert failures[0].name == "etl_server.Fails"
    assert "ValueError: no" in failures[0].getMessage()


@pytest.mark.parametrize(
    ("request_line", "logged"),
    [
        ("PUT /", ("push", "", 400)),
        ("GET /ais%2F@%23%2Fsrc%2Fa", ("pull", "ais/@#/src/a", 503)),
        ("GET /src/a?etl_fqn=%252Fetc%252Fpasswd", ("fqn", "src/a", 403)),
        ("DELETE /src/a", ("delete", "src/a", 405)),
        ("POST /download?object_to=a", ("download", "a", 400)),
    ],
)
async def test_a_request_that_is_refused_is_one_line(
    serve: Serve, failures: list[logging.LogRecord], request_line: str, logged: tuple[str, str, int]
) -> None:
    async with client_of(serve(Fails)) as client:
        await client.send(f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer()).status == logged[2]
    assert await one(failures) == logged


async def test_an_object_that_is_too_large_is_one_line(serve: Serve, failures: list[logging.LogRecord]) -> None:
    async with client_of(serve(Fails, max_body=3)) as client:
        await client.put("/src/a", b"large")
        assert (await client.answer()).status == 413
    assert await one(failures) == ("push", "src/a", 413)


async def test_a_delivery_that_fails_is_one_line(
    serve: Serve, target: Target, failures: list[logging.LogRecord]
) -> None:
    with refusing() as netloc:
        async with client_of(serve(Fails, host_target=target.url)) as client:
            await client.put("/src/a", b"x", f"ais-node-url: http://{netloc}/ais%2F@%23%2Fdst%2Fa\r\n")
            assert (await client.answer()).status == 502
    assert await one(failures) == ("push", "src/a", 502)


async def test_a_transform_that_takes_too_long_is_one_line(serve: Serve, failures: list[logging.LogRecord]) -> None:
    async with client_of(serve(Hangs, object_timeout=0.1)) as client:
        await client.put("/src/a", b"x")
        assert (await client.answer()).status == 500
    assert await one(failures) == ("push", "src/a", 500)
    assert "ETL_OBJECT_TIMEOUT=0.1" in failures[0].getMessage()
    assert failures[0].__dict__["finished"].ms >= 100


async def test_an_answer_that_breaks_off_is_one_line(
    serve: Serve, failures: list[logging.LogRecord], transport: Transport
) -> None:
    async with client_of(serve(BreaksOff)) as client:
        await client.start_chunked("/src/a")
        await client.chunk(b"x")
        assert (await client.head())[0] == 200
        await client.chunk(b"")
        await client.closed()
    if transport == "asgi":  # there, uvicorn has a line of its own for what makes it cut the connection
        await eventually(lambda: len(failures) > 1)
        failures[:] = [record for record in failures if not record.name.startswith("uvicorn")]
    assert await one(failures) == ("push", "src/a", 500)
    assert "cut, because the answer broke off: " in failures[0].getMessage()


@pytest.mark.parametrize("whole", [False, True])
async def test_a_client_that_goes_away_is_one_line(
    serve: Serve, failures: list[logging.LogRecord], whole: bool
) -> None:
    live = serve(Hangs)
    async with client_of(live) as client:
        if whole:
            await client.put("/src/a", b"x")
        else:
            await client.start_chunked("/src/a")
            await client.chunk(b"x")
        await eventually(lambda: live.worker.admission.in_flight == 1)
        client.go_away()
    assert await one(failures) == ("push", "src/a", 499)


@pytest.mark.parametrize("transport", ["protocol"])
async def test_what_is_no_http_is_one_line(serve: Serve, failures: list[logging.LogRecord]) -> None:
    async with client_of(serve(Fails)) as client:
        await client.send("no request\r\n\r\n")
        assert (await client.answer()).status == 400
    assert await one(failures) == ("http", "", 400)


@pytest.mark.parametrize("transport", ["protocol"])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_body_that_is_malformed_is_one_line(
    serve: Serve, failures: list[logging.LogRecord], begun: bool
) -> None:
    live = serve(Fails)
    async with client_of(live) as client:
        head = "PUT /src/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        if begun:
            await client.send(head)
            await eventually(lambda: live.worker.admission.in_flight == 1)
            head = ""
        await client.send(f"{head}no chunk\r\n")
        await client.closed()
    assert await one(failures) == (("push", "src/a", 499) if begun else ("http", "", 400))
    assert "Invalid HTTP request received." in failures[0].getMessage()


async def test_an_idle_connection_that_ends_is_no_line(serve: Serve, failures: list[logging.LogRecord]) -> None:
    live = serve(Fails)
    async with client_of(live) as client, client_of(live):
        await client.put("/src/a", b"x")
        assert (await client.answer()).status == 200
    async with connect(f"ws://127.0.0.1:{live.port}/ws"):
        pass
    await asyncio.sleep(0.05)
    assert failures == []


@pytest.mark.parametrize("ws_error", ["close", "text"])
@pytest.mark.parametrize("warm", [0, 40])
async def test_an_object_that_fails_over_a_websocket_is_one_line(
    serve: Serve, failures: list[logging.LogRecord], ws_error: str, warm: int
) -> None:
    live = serve(Fails, ws_error=ws_error)
    async with connect(f"ws://127.0.0.1:{live.port}/ws") as socket:
        for data in [b"good"] * warm + [b"slow"]:
            await socket.send(b'{"path": "a"}')
            await socket.send(data)
            if data == b"good":
                assert await socket.recv() == b"good"
        await (socket.recv() if ws_error == "text" else socket.wait_closed())
    assert await one(failures) == ("websocket", "a", 500)
    assert failures[0].__dict__["finished"].ms >= 290


async def test_each_object_that_a_websocket_leaves_is_one_line(serve: Serve, failures: list[logging.LogRecord]) -> None:
    live = serve(Hangs)
    async with connect(f"ws://127.0.0.1:{live.port}/ws") as socket:
        for name in ("a", "b"):
            await socket.send(json.dumps({"path": name}).encode())
            await socket.send(b"x")
        await socket.send(b'{"path": "half"}')
        await asyncio.wait_for(await socket.ping(), PATIENCE)
        socket.transport.abort()
    await eventually(lambda: len(failures) >= 3)
    await asyncio.sleep(0.05)
    told = sorted((record.__dict__["finished"].object, record.__dict__["finished"].status) for record in failures)
    assert told == [("a", 499), ("b", 499), ("half", 499)]


async def test_an_object_that_is_cut_as_the_server_ends_is_one_line(tmp_path: Path) -> None:
    spec = tmp_path / "hangs.py"
    spec.write_text(
        "import asyncio\nfrom etl_server import ETLServer\nclass Hangs(ETLServer):\n"
        "    async def transform(self, data, path, etl_args):\n        await asyncio.sleep(60)\n"
    )
    environment = {"ETL_DRAIN_TIMEOUT": "0.2", "ETL_LOG_FORMAT": "json"}
    with ServerProcess.serve(str(spec), environment=environment) as server:
        url = f"ws://127.0.0.1:{server.wait_until_listening().port}/ws"
        async with RawClient(server.port) as client, connect(url) as socket:
            await client.put("/src/a", b"x")
            await socket.send(b'{"path": "b"}')
            await socket.send(b"x")
            await asyncio.wait_for(await socket.ping(), PATIENCE)
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 1
    events = [json.loads(line) for line in server.lines]
    failed = sorted((event["way"], event["object"], event["status"]) for event in events if "status" in event)
    assert failed == [("push", "src/a", 503), ("websocket", "b", 503)]


# The access log


@pytest.mark.parametrize("cls", [Fails, UpperStream])
@pytest.mark.parametrize("wanted", [True, False])
async def test_each_object_that_is_done_is_one_line_where_that_is_asked_for(
    serve: Serve,
    target: Target,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    cls: type[ETLServer],
    wanted: bool,
) -> None:
    (tmp_path / "src").mkdir(exist_ok=True)
    (tmp_path / "src" / "a").write_bytes(b"x")
    fqn = quote(quote(str(ais_file(tmp_path / "mp", "a", b"x")), safe=""), safe="")
    live = serve(cls, host_target=target.url, authn_token=TOKEN, access_log=wanted)
    with caplog.at_level(logging.INFO, "etl_server.access"):
        async with client_of(live) as client, Stage(answering(response(200, b"x"))) as origin:
            for _ in range(40):  # a fast one may change places
                await client.put(f"/src/a%20{TOKEN}", b"x")
                assert (await client.answer()).status == 200
            await client.put("/src/a", b"x", f"ais-node-url: {target.destination('dst', 'a')}\r\n")
            assert (await client.answer()).status == 204
            for request in (f"PUT /src/a?etl_fqn={fqn}", f"GET /{encode_uname(target.uname('src', 'a'))}"):
                await client.send(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                assert (await client.answer()).status == 200
            url = quote(f"{origin.url}/a", safe="")
            await client.send(f"POST /download?original_url={url}&object_to=b/a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.answer()).status == 200
            for path in ("/health", "/metrics"):
                await client.get(path)
                assert (await client.answer()).status == 200
        async with connect(f"ws://127.0.0.1:{live.port}/ws") as socket:
            for _ in range(40):
                await socket.send(b'{"path": "a"}')
                await socket.send(b"x")
                assert await socket.recv() in (b"x", b"X")
    told = [record.__dict__["finished"] for record in caplog.records if record.name == "etl_server.access"]
    lines = Counter((done.way, done.object, done.status) for done in told)
    uname = "ais/@#/src/a"
    expected = {("push", "src/a ***", 200): 40, ("websocket", "a", 200): 40, ("push", "src/a", 204): 1}
    expected |= {("fqn", "src/a", 200): 1, ("pull", uname, 200): 1, ("download", "b/a", 200): 1}
    assert lines == (expected if wanted else {})


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_the_access_log_has_one_line_an_object_and_no_secret(tmp_path: Path, log_format: str) -> None:
    spec = tmp_path / "fails.py"
    spec.write_text(
        "from etl_server import ETLServer\nclass Fails(ETLServer):\n"
        "    def transform(self, data, path, etl_args):\n        assert data != b'fail', 'no'\n        return data\n"
    )
    environment = {"ETL_LOG_FORMAT": log_format, "ETL_LOG_LEVEL": "warning", "AIS_AUTHN_TOKEN": TOKEN}
    environment["ETL_PORT"] = str(free_port())
    with ServerProcess.serve(str(spec), "--access-log", environment=environment) as server:
        while refused(int(environment["ETL_PORT"])):  # at this level it does not say where it listens
            await asyncio.sleep(0.05)
        async with RawClient(int(environment["ETL_PORT"])) as client:
            for name, data, status in ((f"a%0A{TOKEN}", b"good", 200), ("b%3Fsig=5igned", b"fail", 500)):
                await client.put(f"/src/{name}", data)
                assert (await client.answer()).status == status
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    assert TOKEN not in server.stderr
    assert "5igned" not in server.stderr
    done, failed = server.lines
    if log_format == "text":
        assert re.search(r" INFO +etl_server\.access\[\d+\] push src/a\\n\*\*\*: 200 after \d+ ms$", done)
        assert re.search(r"push src/b\?sig=\*\*\*:? 500 after", failed)
    else:
        event = json.loads(done)
        assert (event["logger"], event["level"], event["way"]) == ("etl_server.access", "info", "push")
        assert (event["object"], event["status"], event["message"]) == ("src/a\n***", 200, "")
        assert event["ms"] >= 0
        assert json.loads(failed)["status"] == 500
