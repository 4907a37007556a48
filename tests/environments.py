"""Environments to install into, and users that may not."""

from __future__ import annotations

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
