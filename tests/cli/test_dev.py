"""`etl-server dev`, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

UPPER = """
from etl_server import ETLServer

class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        if path.endswith("bad.txt"):
            raise ValueError("this one is bad")
        return data.upper() + etl_args.encode()
"""


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    file = tmp_path / "upper.py"
    file.write_text(UPPER)
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"hello")
    (folder / "empty").write_bytes(b"")
    (folder / "sub dir" / "100% ünïcode #1?.txt").write_bytes(b"odd")
    return folder


def dev(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etl_server", "dev", "--port", "0", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_object_goes_every_way(upper: Path, data: Path, tmp_path: Path) -> None:
    done = dev(upper, "--data", data, "--out", tmp_path / "out", "--once", "--json", "--etl-args", "!")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["object"], row["way"]) for row in rows} == {
        (name, way)
        for name in ("a.txt", "empty", "sub dir/100% ünïcode #1?.txt")
        for way in ("push", "pull", "file", "websocket", "pipeline")
    }
    assert all(row["ok"] and row["bytes_out"] == row["bytes_in"] + 1 for row in rows)
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"HELLO!"
    assert (tmp_path / "out" / "empty").read_bytes() == b"!"


def test_plain_lines_and_totals_when_piped(upper: Path, data: Path) -> None:
    done = dev(upper, "--data", data, "--once")
    assert done.returncode == 0, done.stderr
    *lines, total = done.stdout.splitlines()
    assert len(lines) == 15
    assert lines[0].split("\t")[:4] == ["a.txt", "push", "5", "5"]
    assert total == "15 rows, 0 failed, 40 bytes in, 40 bytes out"


def test_a_failed_row_says_why_and_gives_exit_code_1(upper: Path, data: Path) -> None:
    (data / "bad.txt").write_bytes(b"x")
    done = dev(upper, "--data", data, "--once")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert len(failed) == 5
    assert all("this one is bad" in line for line in failed)


@pytest.mark.parametrize("mistake", ["no class", "no folder", "empty folder"])
def test_wrong_usage_gives_exit_code_2(upper: Path, data: Path, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "void").mkdir()
    file = tmp_path / "none.py" if mistake == "no class" else upper
    folder = {"no folder": tmp_path / "nowhere", "empty folder": tmp_path / "void"}.get(mistake, data)
    done = dev(file, "--data", folder, "--once")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_it_keeps_serving_and_its_curl_lines_work(upper: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "etl_server", "dev", "--port", "0", str(upper), "--data", str(data)]
    command += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ})
    try:
        assert process.stdout is not None
        shown = ""
        while not re.search(r"^ *health .*$", shown, re.MULTILINE):
            line = process.stdout.readline()
            assert line, "it ended"
            shown += line
        curls = dict(re.findall(r"^  (\w+(?: \w+)?) +(curl .*)$", shown, re.MULTILINE))
        assert set(curls) == {"push", "pull", "direct put", "health"}
        for way in ("push", "pull"):
            subprocess.run(shlex.split(curls[way]), check=True, cwd=tmp_path, timeout=30)
            assert (tmp_path / "result").read_bytes() == b"HELLO"
            (tmp_path / "result").unlink()
        (tmp_path / "out" / "a.txt").unlink()
        subprocess.run(shlex.split(curls["direct put"]), check=True, stdout=subprocess.DEVNULL, timeout=30)
        assert (tmp_path / "out" / "a.txt").read_bytes() == b"HELLO"
        health = subprocess.run(shlex.split(curls["health"]), check=True, capture_output=True, timeout=30)
        assert health.stdout == b"Running"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
