"""What people, logs and programs see of a job while it runs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

from .conftest import Bench


def fill(bench: Bench) -> None:
    bench.fill(a="one", b="bad", stuck="hang")


def test_a_terminal_shows_a_bar_failures_and_what_is_slow(bench: Bench) -> None:
    fill(bench)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "180", "TERM": "xterm"}
    process = subprocess.Popen(
        bench.command("--object-timeout", "4"), stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how a terminal tells that all of it was read
        pass
    os.close(ours)
    assert process.wait(60) == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "2/3" in text
    assert re.search(r"[0-9]+ bytes in, 3 bytes out, [0-9.]+/s, 1 failed, [0-9]+ s left", text)
    assert re.search(r"slow: stuck for [0-9]+ s", text)
    assert "failed b: Processing error: this one is bad" in text
    assert "failed stuck: no result within --object-timeout=4" in text


def test_a_log_gets_plain_lines(bench: Bench) -> None:
    fill(bench)
    process = subprocess.Popen(bench.command(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    pattern = r"2 of 3  [0-9]+ bytes in, 3 bytes out, [0-9.]+/s, 1 failed, [0-9]+ s left  slow: stuck for [0-9]+ s"
    lines: list[str] = []
    try:
        assert process.stderr is not None
        while not lines or not re.fullmatch(pattern, lines[-1]):
            lines.append(process.stderr.readline().removesuffix("\n"))
            assert lines[-1], lines
    finally:
        process.kill()
        process.communicate()
    assert any(line.startswith("failed b: ") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_programs_get_events(bench: Bench) -> None:
    fill(bench)
    done = bench.run("--json", "--object-timeout", "5")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["plan", "failed", "failed", "end"]
    shown = [event for event in events if event["event"] == "progress"]
    assert (1, 1, 3) in [(event["done"], event["failed"], event["due"]) for event in shown]
    assert {slow["source"] for event in shown for slow in event["slow"]} == {"stuck"}
