"""`python -m etl_server.bootstrap`, run as a container runs it: what it serves, and how a start ends that cannot be."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import pytest

from etl_server import ETLServer
from etl_server.payload import Meta, serialize_class

from .environments import UNPRIVILEGED, needs_unprivileged
from .helpers import ServerProcess

KEY = "k3y-0f-test"


class Shout(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper() + etl_args.encode()


PAYLOAD = serialize_class(Shout)
DATA = base64.b64decode(PAYLOAD)
FILE = """
from etl_server import ETLServer
class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        return data.upper()
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("way", ["ETL_CLASS_PAYLOAD", "ETL_CLASS_PAYLOAD_FILE", "file", "module"])
def test_a_class_is_served_from_wherever_it_is(tmp_path: Path, way: str, workers: str) -> None:
    environment = {"NUM_WORKERS": workers, "ETL_WORKERS": ""}
    arguments: list[str] = []
    if way == "ETL_CLASS_PAYLOAD":
        environment[way] = PAYLOAD
    elif way == "ETL_CLASS_PAYLOAD_FILE":
        environment[way] = str(tmp_path / "payload")
        (tmp_path / "payload").write_text(PAYLOAD + "\n")
    else:
        (tmp_path / "mine.py").write_text(FILE)
        arguments = ["mine.py:Upper" if way == "file" else "mine"]
    with ServerProcess.bootstrap(*arguments, environment=environment, cwd=tmp_path) as server:
        assert server.put(b"hello") == (200, b"HELLO")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_payload_may_be_larger_than_an_environment_variable(tmp_path: Path) -> None:
    table = os.urandom(300_000)
    cls = type("Large", (Shout,), {"table": table, "transform": lambda self, data, path, etl_args: self.table})
    text = serialize_class(cls)
    assert len(text) > 131072
    (tmp_path / "payload").write_text(text)
    with ServerProcess.bootstrap(
        environment={"ETL_CLASS_PAYLOAD_FILE": str(tmp_path / "payload"), "ETL_WORKERS": "2"}
    ) as server:
        assert server.put(b"") == (200, table)


@pytest.mark.parametrize("place", ["ETL_CLASS_META", "ETL_CLASS_META_FILE"])
@pytest.mark.parametrize("key", ["", KEY])
def test_a_payload_that_its_meta_belongs_to_is_served(tmp_path: Path, place: str, key: str) -> None:
    meta = Meta.of("Shout", DATA, key=key).text()
    if place == "ETL_CLASS_META_FILE":
        (tmp_path / "meta").write_text(meta)
        meta = str(tmp_path / "meta")
    environment = {"ETL_CLASS_PAYLOAD": PAYLOAD, place: meta, **({"ETL_PAYLOAD_KEY": key} if key else {})}
    with ServerProcess.bootstrap(environment=environment) as server:
        assert server.put(b"hello", "!") == (200, b"HELLO!")
    assert KEY not in server.stderr


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.file),)


def refused(environment: Mapping[str, str], *arguments: str, cwd: Path | None = None, code: int = 2) -> str:
    """The one line by which a start ends."""
    with ServerProcess.bootstrap(*arguments, environment=environment, cwd=cwd) as server:
        assert server.wait() == code, server.stderr
    assert len(server.lines) == 1, server.stderr
    assert server.stderr.startswith("etl-server: ")
    return server.stderr


@pytest.mark.parametrize("signed_with", [None, "", "another key"])
def test_with_a_key_nothing_is_unpickled_that_is_not_signed_with_it(tmp_path: Path, signed_with: str | None) -> None:
    data = cloudpickle.dumps(Trap(tmp_path / "sprung"))
    environment = {"ETL_CLASS_PAYLOAD": base64.b64encode(data).decode(), "PACKAGES": "no-such-package"}
    if signed_with is not None:
        environment["ETL_CLASS_META"] = Meta.of("Shout", data, key=signed_with).text()
    line = refused({**environment, "ETL_PAYLOAD_KEY": KEY})
    assert ("not signed" in line) == (not signed_with)
    assert ("HMAC" in line) == bool(signed_with)
    assert "ETL_PAYLOAD_KEY" in line
    assert KEY not in line
    assert not (tmp_path / "sprung").exists()
    # The trap is one.
    if signed_with is None:
        refused({"ETL_CLASS_PAYLOAD": environment["ETL_CLASS_PAYLOAD"]})
        assert (tmp_path / "sprung").exists()


def test_nothing_is_unpickled_that_its_meta_does_not_belong_to(tmp_path: Path) -> None:
    data = cloudpickle.dumps(Trap(tmp_path / "sprung"))
    meta = Meta.of("Shout", DATA).text()
    line = refused({"ETL_CLASS_PAYLOAD": base64.b64encode(data).decode(), "ETL_CLASS_META": meta})
    for found in data, DATA:
        assert hashlib.sha256(found).hexdigest() in line
    assert not (tmp_path / "sprung").exists()


def test_a_payload_of_another_python_is_refused_by_its_meta() -> None:
    meta = json.loads(Meta.of("Shout", DATA).text())
    line = refused({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": json.dumps({**meta, "python": "3.99.1"})})
    here = platform.python_version()
    for word in ("class Shout", "Python 3.99.1", "cloudpickle", f"here is Python {here}", "ship it again", "image"):
        assert word in line


class Leaves:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return sys.exit, (0,)


def test_a_payload_that_ends_the_process_is_no_success() -> None:
    line = refused({"ETL_CLASS_PAYLOAD": base64.b64encode(cloudpickle.dumps(Leaves())).decode()})
    assert "unpickling failed: SystemExit: 0" in line


def test_another_patch_version_of_python_is_as_good() -> None:
    meta = json.loads(Meta.of("Shout", DATA).text())
    meta["python"] = platform.python_version().rpartition(".")[0] + ".99"
    with ServerProcess.bootstrap(
        environment={"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": json.dumps(meta)}
    ) as server:
        assert server.put(b"a") == (200, b"A")


def needing_a_module() -> bytes:
    return b"cno_such_module.part\nName\n."


def test_a_missing_package_is_named_with_what_to_do() -> None:
    data = needing_a_module()
    text = base64.b64encode(data).decode()
    line = refused({"ETL_CLASS_PAYLOAD": text})
    assert "module 'no_such_module' is not installed here: add the package that has it to PACKAGES" in line
    meta = json.loads(Meta.of("Shout", data).text())
    meta["packages"] = {"no_such_module": "no-such-dist==1.2"}
    line = refused({"ETL_CLASS_PAYLOAD": text, "ETL_CLASS_META": json.dumps(meta)})
    assert "add 'no-such-dist==1.2' to PACKAGES; class Shout was built with Python" in line


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ["ETL_CLASS_PAYLOAD and ETL_CLASS_PAYLOAD_FILE, and none is given"]),
        ({"ETL_CLASS_PAYLOAD": "abc"}, ["ETL_CLASS_PAYLOAD: base64 decoding failed"]),
        ({"ETL_CLASS_PAYLOAD": " "}, ["ETL_CLASS_PAYLOAD: base64 decoding failed: the payload is empty"]),
        ({"ETL_CLASS_PAYLOAD": base64.b64encode(DATA[:-30]).decode()}, ["unpickling failed"]),
        ({"ETL_CLASS_PAYLOAD": base64.b64encode(DATA[:2]).decode()}, ["unpickling failed: the payload is cut off"]),
        ({"ETL_CLASS_PAYLOAD": base64.b64encode(cloudpickle.dumps(7)).decode()}, ["not an ETLServer subclass"]),
        ({"ETL_CLASS_PAYLOAD_FILE": "/no/such/file"}, ["ETL_CLASS_PAYLOAD_FILE=/no/such/file: expected a file"]),
        ({"ETL_CLASS_PAYLOAD_FILE": "/"}, ["ETL_CLASS_PAYLOAD_FILE=/: expected a file"]),
        ({"ETL_CLASS_META_FILE": "/no/such/file"}, ["ETL_CLASS_META_FILE=/no/such/file: expected a file"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": "{"}, ["ETL_CLASS_META: expected the JSON"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": "7"}, ["ETL_CLASS_META: expected the JSON"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": "{}"}, ["ETL_CLASS_META: expected the JSON"]),
        (
            {"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_META": '{"name":"a","python":3,"sha256":"a"}'},
            ["ETL_CLASS_META: expected the JSON"],
        ),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_PAYLOAD_KEY": ""}, ["ETL_PAYLOAD_KEY=: expected a key"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_PORT": "eighty"}, ["ETL_PORT=eighty: expected a whole number"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "NUM_WORKERS": "0", "ETL_WORKERS": ""}, ["NUM_WORKERS=0: expected"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "PACKAGES": "--index-url=x"}, ["PACKAGES=--index-url=x: expected names"]),
        ({"ETL_CLASS_PAYLOAD": PAYLOAD, "OS_PACKAGES": "-y"}, ["OS_PACKAGES=-y: expected names"]),
    ],
)
def test_what_is_given_wrong_ends_the_start_with_one_line(environment: Mapping[str, str], words: list[str]) -> None:
    line = refused(environment)
    assert [word for word in words if word not in line] == [], line


def test_two_sources_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    line = refused({"ETL_CLASS_PAYLOAD": PAYLOAD}, "mine.py", cwd=tmp_path)
    assert "mine.py and ETL_CLASS_PAYLOAD is given" in line
    (tmp_path / "payload").write_text(PAYLOAD)
    line = refused({"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_CLASS_PAYLOAD_FILE": str(tmp_path / "payload")})
    assert "ETL_CLASS_PAYLOAD and ETL_CLASS_PAYLOAD_FILE is given" in line


def test_a_module_that_is_not_there_ends_the_start_with_one_line(tmp_path: Path) -> None:
    assert "no_such_module cannot be imported" in refused({}, "no_such_module", cwd=tmp_path)
    assert "no_such.py: no such file" in refused({}, "no_such.py", cwd=tmp_path)


def test_a_class_that_is_abstract_ends_the_start_with_one_line(tmp_path: Path) -> None:
    script = """
import abc
from etl_server import ETLServer, serialize_class
class Half(ETLServer, abc.ABC):
    @abc.abstractmethod
    def load(self): ...
    def transform(self, data, path, etl_args): return data
print(serialize_class(Half))
"""
    text = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "class Half is abstract, it lacks load" in refused({"ETL_CLASS_PAYLOAD": text})


def test_a_port_that_is_taken_ends_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"ETL_PORT={port}: expected an address that is free" in refused(
            {"ETL_CLASS_PAYLOAD": PAYLOAD, "ETL_PORT": port}
        )


class NoModel(Shout):
    def setup(self) -> None:
        raise RuntimeError("no model file")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_setup_that_fails_ends_the_start_with_its_reason(workers: str) -> None:
    with ServerProcess.bootstrap(
        environment={"ETL_CLASS_PAYLOAD": serialize_class(NoModel), "ETL_WORKERS": workers}
    ) as server:
        assert server.wait() == 3
    assert "setup() failed: RuntimeError: no model file" in server.stderr


@needs_unprivileged
def test_a_payload_file_that_cannot_be_read_ends_the_start_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_text(PAYLOAD)
    file.chmod(0)
    with ServerProcess.bootstrap(python=UNPRIVILEGED, environment={"ETL_CLASS_PAYLOAD_FILE": str(file)}) as server:
        assert server.wait() == 2
    assert len(server.lines) == 1
    assert f"ETL_CLASS_PAYLOAD_FILE={file}: expected a file that can be read" in server.stderr


@pytest.mark.parametrize("start", [ServerProcess.bootstrap, ServerProcess.serve])
def test_a_class_that_cannot_be_imported_is_told_on_one_line_without_the_secrets(
    tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os\nraise ImportError('no\\nsuch\\nthing: ' + ' '.join(os.environ.values()))\n")
    secrets = {"AIS_TARGET_URL": "http://target:51081/v1/etl/_object/name/s3cr3t", "AIS_AUTHN_TOKEN": "s3cr3t-t0ken"}
    with start(str(file), environment={**secrets, "PROXY": "http://me:s3cr3t-p4ss@proxy"}) as server:
        assert server.wait() == 2
    assert len(server.lines) == 1, server.stderr
    assert "ImportError: no such thing: " in server.stderr
    assert "s3cr3t" not in server.stderr
    assert "-t0ken" not in server.stderr
