"""`examples/s3.md`: its commands, run as they are written, but for the ports, and for pip, which takes too long."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.helpers import ROOT


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_the_page_gets_thumbnails_out_of_a_bucket(tmp_path: Path) -> None:
    page = (ROOT / "examples" / "s3.md").read_text()
    install, *blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert install.startswith("pip install ")
    script = "".join(blocks).replace("9000", _free_port()).replace("8000", _free_port())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path), "ETL_WORKERS": "1"}
    process = subprocess.Popen(
        ["sh", "-e"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        shown, errors = process.communicate(script, timeout=100)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what a failed script leaves running
        except ProcessLookupError:
            pass
    assert process.returncode == 0, errors
    (folder,) = tmp_path.iterdir()
    assert "street at night.jpg" in shown
    with Image.open(folder / "mountains.jpg") as thumbnail:
        assert max(thumbnail.size) == 128
    with Image.open(folder / "street.jpg") as thumbnail:
        assert max(thumbnail.size) == 256
    assert re.search(r"^accept-ranges: bytes\s+content-length: \d{4,}$", shown, re.MULTILINE)
    assert "PNG" in shown
    assert '{"detail": "Object not found: s3://photos/nothing.png"}' in shown
    stored = folder / "thumbnails" / "2026" / "fog.jpg"
    with Image.open(stored) as thumbnail:
        assert max(thumbnail.size) == 64
    assert f"ais-direct-put-length: {stored.stat().st_size}" in shown
