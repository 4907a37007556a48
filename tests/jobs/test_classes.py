"""Every kind of class, and every kind of name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Bench

ASYNC = """
    async def transform(self, data, path, etl_args):
        await asyncio.sleep(0)
        return upper(data)
"""
STREAM = """
    def transform_stream(self, reader, path, etl_args):
        while piece := reader.read(1000):
            yield upper(piece)
"""
ASYNC_STREAM = """
    async def transform_stream(self, reader, path, etl_args):
        async for piece in reader:
            await asyncio.sleep(0)
            yield upper(piece)
"""
INLINE = """
    execution = "inline"

    def transform(self, data, path, etl_args):
        return upper(data)
"""
COMMON = """
import asyncio
from etl_server import ETLServer

def upper(data):
    if data.startswith(b"bad"):
        raise ValueError("this one is bad")
    return data.upper()

class Upper(ETLServer):
"""

CLOSING = """
import httpx, requests
from etl_server import ETLServer

def closed(what):
    with open(FOLDER + "/closed", "a") as file:
        file.write(what + "\\n")

class Session(requests.Session):
    def close(self):
        closed("session")

class Client(httpx.AsyncClient):
    async def aclose(self):
        closed("client")

class Closing(ETLServer):
    async def setup(self):
        self.session = Session()
        self.client = Client()

    def transform(self, data, path, etl_args):
        global FOLDER
        FOLDER = etl_args
        return data

    def teardown(self):
        closed("teardown")
"""


@pytest.mark.parametrize(
    "body", [ASYNC, STREAM, ASYNC_STREAM, INLINE], ids=["async", "stream", "async stream", "inline"]
)
def test_a_class_of_any_kind_does_a_job(bench: Bench, body: str) -> None:
    bench.spec.write_text(COMMON + body)
    objects = {f"dir/{number}": f"object {number} " * number * 100 for number in range(20)}
    bench.fill(bad="bad", **objects)
    end = bench.events(code=1)
    assert (end["done"], end["failed"]) == (20, 1)
    assert bench.outputs == {name: content.upper() for name, content in objects.items()}
    assert "  bad: Processing error: this one is bad (upper.py:7)" in bench.run().stdout.splitlines()


def test_odd_names_are_kept(bench: Bench) -> None:
    names = ["new\nline", "-dash", "ünï", "sp ace/#?%41", "quo'te\"", "tab\t.txt", "[red]x"]
    for name in names:
        bench.put(name, "content")
    assert bench.events()["done"] == len(names)
    assert bench.outputs == dict.fromkeys(names, "CONTENT")


def test_a_name_that_is_not_utf_8_is_one_like_any_other(bench: Bench, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    bench.fill(a="one", z="three")
    (bench.source / name).write_text("two")
    report = tmp_path / "report.jsonl"
    done = bench.run("--report", str(report))
    assert done.returncode == 0, done.stderr
    assert bench.outputs == {"a": "ONE", name: "TWO", "z": "THREE"}
    assert b'"source": "caf\xe9"' in report.read_bytes()
    assert bench.events()["skipped"] == 3
    (bench.source / name).unlink()
    assert bench.events("--sync")["deleted"] == 1
    assert bench.outputs == {"a": "ONE", "z": "THREE"}


def test_a_name_that_is_not_utf_8_is_told_when_it_fails(bench: Bench) -> None:
    (bench.source / os.fsdecode(b"caf\xe9")).write_text("bad")
    done = bench.run()
    assert done.returncode == 1
    assert "  caf\\udce9: Processing error: this one is bad (upper.py:8)" in done.stdout.splitlines()


def test_a_worker_closes_what_its_class_has_opened(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(CLOSING)
    bench.fill(a="one")
    assert bench.events("--etl-args", str(tmp_path), "--workers", "1")["done"] == 1
    assert (tmp_path / "closed").read_text().splitlines() == ["teardown", "session", "client"]


def test_a_teardown_that_fails_closes_them_too(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(CLOSING + "        raise RuntimeError('no way down')\n")
    bench.fill(a="one")
    assert bench.events("--etl-args", str(tmp_path), "--workers", "1")["done"] == 1
    assert (tmp_path / "closed").read_text().splitlines() == ["teardown", "session", "client"]
