"""Jobs as users run them: real commands, real processes, real files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..helpers import ROOT

UPPER = """
import ctypes, os, time
from etl_server import ETLServer

class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        if data.startswith(b"bad"):
            raise ValueError("this one is bad")
        if data.startswith(b"segfault"):
            ctypes.string_at(0)
        if data.startswith(b"exit"):
            os._exit(7)
        if data.startswith(b"once"):
            marker = data.decode().split()[1]
            if not os.path.exists(marker):
                open(marker, "w").close()
                os._exit(7)
        if data.startswith(b"hang"):
            for marker in data.decode().split()[1:]:
                open(f"{marker}.{os.getpid()}", "w").close()
            time.sleep(1000)
        if data.startswith(b"slow"):
            time.sleep(0.5)
        return data.upper() + etl_args.encode()
"""


class Bench:
    """A source folder, a sink folder, a transform, and the command over them."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.sink = folder / "sink"
        self.spec = folder / "upper.py"
        self.ledger = folder / "ledger.sqlite"
        self.source.mkdir()
        self.spec.write_text(UPPER)

    def fill(self, **objects: str) -> None:
        for name, content in objects.items():
            self.put(name, content)

    def put(self, name: str, content: str) -> None:
        file = self.source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    @property
    def outputs(self) -> dict[str, str]:
        """The files of the sink, hidden ones included."""
        return {str(file.relative_to(self.sink)): file.read_text() for file in self.sink.rglob("*") if file.is_file()}

    def command(self, *options: str) -> list[str]:
        places = [str(self.spec), str(self.source), str(self.sink), "--ledger", str(self.ledger)]
        return [sys.executable, "-m", "etl_server", "transform", *places, *options]

    def run(self, *options: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options), capture_output=True, text=True, timeout=100, input=stdin, cwd=ROOT
        )

    def events(self, *options: str, code: int = 0) -> dict[str, Any]:
        """The last event of a run with `--json`."""
        done = self.run("--json", *options)
        assert done.returncode == code, done.stdout + done.stderr
        last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return last

    @property
    def hanging(self) -> list[int]:
        """The processes in which an object hangs, or did, which is `hang`."""
        return [int(file.suffix[1:]) for file in self.spec.parent.glob("hanging.*")]

    @property
    def hang(self) -> str:
        """An object that hangs, and lets it be known."""
        return f"hang {self.spec.with_name('hanging')}"


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Jobs have two workers, or as many as the test's module says by `WORKERS`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ETL_WORKERS", str(getattr(request.module, "WORKERS", 2)))
    return Bench(tmp_path)
