"""Environments to install into, and users that may not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .helpers import ROOT

UNPRIVILEGED: tuple[str, ...] = (
    () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
) + (sys.executable,)
"""The command that runs Python so that the permissions of files count, for root as well."""

needs_unprivileged = pytest.mark.skipif(
    not os.geteuid() and shutil.which("setpriv") is None, reason="root without setpriv may read and write everything"
)


_INSTALL_SECONDS = 600

needs_installation = pytest.mark.timeout(_INSTALL_SECONDS + 60)
"""Marks the tests that call `python_with()`: the first of them on a machine waits for the installation."""


class Environment:
    """An environment of its own, which finds what the tests' one has, pip included."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = str(folder / "bin/python")
        (self.packages,) = (folder / "lib").glob("python*/site-packages")
        installed = [path for path in sys.path if path.endswith("site-packages")]
        (self.packages / "tests.pth").write_text("\n".join([*installed, str(ROOT)]))

    def installed(self) -> set[str]:
        """Names of the modules in it."""
        return {path.stem for path in self.packages.glob("*.py")}


def make_wheel(
    folder: Path, name: str = "tiny_dep", version: str = "1.0", source: str = "ANSWER = b'42'", requires: str = ""
) -> None:
    """Make a wheel of one module in a folder, that is made too. `requires`: further lines of its metadata."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", source)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: more\n{requires}",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of an environment that has these requirements, and nothing of ours.

    It is of the same Python as the tests. Installed from PyPI when it is first asked for, into
    `~/.cache/etl-server-tests` (or `$XDG_CACHE_HOME`), and found there from then on. Processes that ask at once wait
    for the one that installs; an installation that was cut short is begun anew.

    Args:
        name: what the environment's name begins with.
        requirements: as pip takes them.

    Raises:
        RuntimeError: the installation failed; the text is pip's.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etl-server-tests"
    cache.mkdir(parents=True, exist_ok=True)
    unique = f"{' '.join(requirements)} {sys.version} {sys.base_prefix}"
    name = f"{name}-{hashlib.sha256(unique.encode()).hexdigest()[:12]}"
    place = cache / name
    python, installed = place / "bin/python", place / "installed"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            shutil.rmtree(place, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(place))
            _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
            installed.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr or done.stdout}")
