"""The shell scripts of the project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import ROOT

SCRIPTS = [".ci/run", "scripts/environment", "scripts/run", "scripts/test", "tests/image/build.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_clean(script: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [str(shellcheck), "--external-sources", "--source-path=SCRIPTDIR", str(ROOT / script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_script_is_checked() -> None:
    files = [*ROOT.glob(".ci/*"), *ROOT.glob("scripts/*"), *ROOT.glob("tests/**/*.sh")]
    assert sorted(str(file.relative_to(ROOT)) for file in files) == SCRIPTS
