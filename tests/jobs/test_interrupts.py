"""Ctrl-C and SIGTERM before there is any work, and what is said of how to go on."""

from __future__ import annotations

import signal
import socket
import subprocess

import pytest

from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials"]

WORKERS = 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_waits_for_its_plan_ends_at_once(bench: Bench, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        command = bench.command()
        command[command.index(str(bench.source))] = f"s3://b?endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            with silent.accept()[0] as asked:
                asked.settimeout(30)
                assert asked.recv(1)
                process.send_signal(number)
                out, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert errors == ""
    assert out.splitlines()[-1].startswith("stopped (interrupted); to go on: etl-server transform")


def test_it_is_told_what_the_command_to_go_on_does_not_do(bench: Bench) -> None:
    bench.fill(a="bad", b="two")
    out = bench.run("--fail-fast", "--force", "--list", "-", stdin="a\nb\n").stdout.splitlines()
    assert out[-2].endswith("(with the list on standard input again)")
    assert out[-1].startswith("with --force it does not go on, but begins again")
