"""AIStore's own Python package, in an environment of its own: what ours is compared with."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENT = "aistore[etl]==2.0.0"
_INSTALL_SECONDS = 600

needs_aistore = pytest.mark.timeout(_INSTALL_SECONDS + 60)
"""Marks the tests that call `aistore_python()`: the first of them on a machine waits for the installation."""


def aistore_python() -> Path:
    """The interpreter of an environment that has `aistore[etl]` of one fixed version, and nothing of ours.

    It is of the same Python as the tests. Installed from PyPI when it is first asked for, into
    `~/.cache/etl-server-tests` (or `$XDG_CACHE_HOME`), and found there from then on. Processes that ask at once wait
    for the one that installs; an installation that was cut short is begun anew.

    Raises:
        RuntimeError: the installation failed; the text is pip's.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etl-server-tests"
    cache.mkdir(parents=True, exist_ok=True)
    name = "aistore-" + hashlib.sha256(f"{REQUIREMENT} {sys.version} {sys.base_prefix}".encode()).hexdigest()[:12]
    place = cache / name
    python, installed = place / "bin/python", place / "installed"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            shutil.rmtree(place, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(place))
            _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT)
            installed.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr or done.stdout}")
