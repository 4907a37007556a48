"""The environment with AIStore's own package."""

from __future__ import annotations

import subprocess

from .aistore_venv import REQUIREMENT, aistore_python, needs_aistore


@needs_aistore
def test_it_has_that_version_of_aistore_and_nothing_of_ours() -> None:
    code = """
from importlib.metadata import version
from importlib.util import find_spec
import aistore.sdk.etl.webserver.fastapi_server
print(version("aistore"), find_spec("etl_server"))
"""
    done = subprocess.run([aistore_python(), "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [REQUIREMENT.partition("==")[2], "None"]
