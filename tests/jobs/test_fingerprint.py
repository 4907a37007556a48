"""A fingerprint is the same wherever and whenever it is taken, as long as the code is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import re, threading
from enum import Enum
from etl_server import ETLServer

class Kind(Enum):
    A = "a"
    B = "b"

WORDS = {"one", "two", "three", "four"}
FROZEN = frozenset({"x", "y", Kind.A, Kind.B})
PATTERN = re.compile("a+")
LOCK = threading.Lock()

def known(word):
    return word in {"red", "green", "blue"} or word in WORDS

class Transform(ETLServer):
    table = {"k": (1, 2.5, None), "again": "one"}

    def transform(self, data, path, etl_args):
        with LOCK:
            if known(path) or PATTERN.match(path) or path in FROZEN or Kind.A.value in path:
                return data
        return [word for word in (lambda: WORDS)()] and data[::-1]
"""

TAKE = """
import sys
from etl_server.config import Settings
from etl_server.jobs.fingerprint import fingerprint
from etl_server.loading import load_class
print(fingerprint(load_class(sys.argv[1]), Settings.load(), sys.argv[2]))
"""


def take(file: Path, seed: int = 0, etl_args: str = "", **environment: str) -> str:
    command = [sys.executable, "-c", TAKE, str(file), etl_args]
    settings = {**os.environ, "PYTHONHASHSEED": str(seed), **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.strip()


def test_it_does_not_depend_on_the_process_the_place_or_the_lines(tmp_path: Path) -> None:
    file = tmp_path / "transform.py"
    file.write_text(CODE)
    elsewhere = tmp_path / "elsewhere" / "transform.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("# a comment\n\n\n" + CODE)
    taken = {take(file, seed) for seed in (1, 2, 3)} | {take(elsewhere, 4), take(elsewhere, 5)}
    assert len(taken) == 1


def test_it_changes_with_whatever_makes_another_output(tmp_path: Path) -> None:
    file = tmp_path / "transform.py"
    changes = [
        ("data[::-1]", "data[::-2]"),
        ('"green"', '"grey"'),
        ('"four"', '"five"'),
        ('"a+"', '"b+"'),
        ("2.5", "2.6"),
        ('B = "b"', 'B = "c"'),
        ("or PATTERN", "and PATTERN"),
    ]
    file.write_text(CODE)
    taken = {take(file), take(file, etl_args="!"), take(file, ETL_DIRECT_FQN="true")}
    for old, new in changes:
        assert old in CODE
        file.write_text(CODE.replace(old, new))
        taken.add(take(file))
    assert len(taken) == 3 + len(changes)
