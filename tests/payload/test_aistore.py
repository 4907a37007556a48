"""Payloads made by AIStore's own package, served by a process that does not have it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from etl_server.errors import PayloadError
from etl_server.payload import deserialize_class

from ..aistore_venv import aistore_python, needs_aistore
from ..environments import Environment
from ..helpers import ServerProcess, ais_file

pytestmark = needs_aistore

TARGET = "http://target:51081/v1/etl/_object/name/s3cr3t"


@dataclass(frozen=True)
class Case:
    """A script that defines `App` as users of AIStore write it, and what the class makes of `hello` with arguments."""

    script: str
    answer: str
    etl_args: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


BUFFERED = """
from aistore.sdk.etl.webserver.{module} import {base}

class App({base}):
    def transform(self, data, path, etl_args):
        return data.upper() + b" " + path.encode()
"""

CASES = {
    **{
        f"buffered, on {base}": Case(BUFFERED.format(module=module, base=base), "HELLO bucket/object")
        for module, base in {
            "fastapi_server": "FastAPIServer",
            "flask_server": "FlaskServer",
            "http_multi_threaded_server": "HTTPMultiThreadedServer",
        }.items()
    },
    "buffered, on the base of all": Case(
        """
from aistore.sdk.etl.webserver.base_etl_server import ETLServer

class App(ETLServer):
    def start(self):
        raise RuntimeError("this is not how it is served")
    def transform(self, data, *_args):
        return data.upper()
""",
        "HELLO",
    ),
    "streaming": Case(
        """
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

class App(FastAPIServer):
    def transform_stream(self, reader, path, etl_args):
        while chunk := reader.read(2):
            yield chunk.upper()
        yield str(self.use_streaming).encode()
""",
        "HELLOTrue",
    ),
    "streaming, and closing": Case(
        """
from aistore.sdk.etl.webserver.flask_server import FlaskServer

class App(FlaskServer):
    def transform_stream(self, reader, path, etl_args):
        yield reader.read(3)
        self.close_reader(reader)
""",
        "hel",
    ),
    "with arguments": Case(
        """
import json
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

class App(FastAPIServer):
    def transform(self, data, path, etl_args):
        return data * json.loads(etl_args)["times"]
""",
        "hellohello",
        etl_args="%7B%22times%22%3A2%7D",
    ),
    "with a model loaded in __init__": Case(
        """
import re
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

class Model:
    def __init__(self, words):
        self.pattern = re.compile("|".join(words))
    def __call__(self, text):
        return self.pattern.sub(lambda found: found[0].title(), text)

class App(FastAPIServer):
    def __init__(self, *args, **kwargs):
        super().__init__(host="0.0.0.0", port=8000)
        self.model = Model(["he", "lo"])
        self.logger.info("the model is loaded")
    def transform(self, data, path, etl_args):
        return self.model(data.decode()).encode()
    def get_mime_type(self):
        return "text/plain"
""",
        "HelLo",
    ),
    "with everything that its base has": Case(
        """
from aistore.sdk.etl.webserver.http_multi_threaded_server import HTTPMultiThreadedServer

class App(HTTPMultiThreadedServer):
    def __init__(self, host="1.2.3.4", port=80):
        super().__init__(host, port)
        self.session.headers["X-Mine"] = "1"
    def transform(self, data, path, etl_args):
        self.logger.debug("%s", path)
        return " ".join(map(str, [
            self.host_target, self.session.headers["X-Mine"], self.get_mime_type(), self.direct_fqn, self.direct_put,
            self.direct_put_retries, self.token, self.host, self.port, self.use_streaming,
            self.sanitize_fqn("/mnt/a%20b/../c"), self.sanitize_fqn("../../etc"),
        ])).encode()
""",
        f"{TARGET} 1 application/octet-stream False True 7 t0ken 1.2.3.4 80 False /mnt/c /etc",
        environment={
            "AIS_TARGET_URL": TARGET,
            "DIRECT_PUT": "true",
            "AIS_DIRECT_PUT_RETRIES": "7",
            "AIS_AUTHN_TOKEN": "t0ken",
        },
    ),
    "that sets what its base has": Case(
        """
import logging
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

class App(FastAPIServer):
    def __init__(self):
        super().__init__()
        self.host_target, self.direct_fqn, self.logger = "mine", True, logging.getLogger("mine")
    def transform(self, data, path, etl_args):
        return f"{self.host_target} {self.direct_fqn} {self.logger.name}".encode()
""",
        "mine True mine",
    ),
    "that calls its base by name": Case(
        """
from aistore.sdk.etl.webserver import fastapi_server
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

class App(FastAPIServer):
    def __init__(self):
        FastAPIServer.__init__(self, port=9000)
        self.same = issubclass(App, FastAPIServer)
    def transform(self, data, path, etl_args):
        assert fastapi_server.FastAPIServer.__name__ == "FastAPIServer"
        return f"{self.port} {self.same} {isinstance(self, FastAPIServer)}".encode()
""",
        "9000 True True",
    ),
    "that imports AIStore's helpers when it runs": Case(
        """
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer
from aistore.sdk.etl.webserver.utils import compose_etl_direct_put_url

class App(FastAPIServer):
    def transform(self, data, path, etl_args):
        from aistore.sdk.etl.webserver.utils import parse_etl_pipeline
        import aistore.sdk.etl.webserver.base_etl_server as base
        url = compose_etl_direct_put_url("http://next:1", "http://t:2/v1", path)
        return f"{parse_etl_pipeline('http://a,http://b')} {url} {isinstance(self, base.ETLServer)}".encode()
""",
        "('http://a', 'http://b') http://next:1/bucket/object True",
    ),
    "of several classes, decorated and renamed": Case(
        """
from aistore.sdk.etl.webserver.base_etl_server import ETLServer
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer

def named(name):
    def decorate(cls):
        cls.__name__ = cls.__qualname__ = name
        return cls
    return decorate

class Suffix(ETLServer):
    suffix = b"!"
    def transform(self, data, path, etl_args):
        return data + self.suffix

@named("Something else")
class App(FastAPIServer, Suffix):
    def transform(self, data, path, etl_args):
        return super().transform(data.upper(), path, etl_args)
""",
        "HELLO!",
    ),
}

MAKE = """
import json, sys
from aistore.sdk.etl.webserver.utils import serialize_class
payloads = {}
for name, script in json.load(sys.stdin).items():
    namespace = {"__name__": "__main__"}
    exec(script, namespace)
    payloads[name] = serialize_class(namespace["App"])
print(json.dumps(payloads))
"""


@pytest.fixture(scope="module")
def payloads() -> dict[str, str]:
    """By case: what AIStore's own package makes of the class."""
    scripts = json.dumps({name: case.script for name, case in CASES.items()})
    made = subprocess.run([aistore_python(), "-c", MAKE], input=scripts, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found: dict[str, str] = json.loads(made.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_class_made_for_aistores_servers_is_served_unchanged(name: str, payloads: dict[str, str]) -> None:
    case = CASES[name]
    environment = {"ETL_CLASS_PAYLOAD": payloads[name], **case.environment}
    with ServerProcess.bootstrap(environment=environment) as server:
        status, body = server.put(b"hello", case.etl_args)
        assert (status, body.decode()) == (200, case.answer)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_the_server_of_these_tests_does_not_have_aistore() -> None:
    done = subprocess.run([sys.executable, "-c", "import aistore"], capture_output=True, text=True)
    assert "No module named 'aistore'" in done.stderr


def test_several_workers_serve_such_a_class(payloads: dict[str, str]) -> None:
    environment = {
        "ETL_CLASS_PAYLOAD": payloads["with a model loaded in __init__"],
        "NUM_WORKERS": "2",
        "ETL_WORKERS": "",
    }
    with ServerProcess.bootstrap(environment=environment) as server:
        assert server.put(b"hello") == (200, b"HelLo")
        server.wait_for_line("the model is loaded", count=2)


def test_such_a_class_gets_the_path_of_a_file(tmp_path: Path) -> None:
    file = ais_file(tmp_path, "name", b"content")
    script = BUFFERED.format(module="fastapi_server", base="FastAPIServer").replace("data.upper()", "data.encode()")
    made = subprocess.run(
        [aistore_python(), "-c", MAKE], input=json.dumps({"a": script}), capture_output=True, text=True
    )
    environment = {
        "ETL_CLASS_PAYLOAD": json.loads(made.stdout)["a"],
        "ETL_DIRECT_FQN": "true",
        "ETL_FQN_ROOTS": str(tmp_path),
    }
    with ServerProcess.bootstrap(environment=environment) as server:
        assert server.put(b"", f"&etl_fqn={file}".replace("%", "%2525")) == (200, f"{file} bucket/object".encode())


def test_where_aistore_is_installed_it_is_neither_needed_nor_disturbed(
    tmp_path: Path, payloads: dict[str, str]
) -> None:
    environment = Environment(tmp_path / "venv")
    (packages,) = (aistore_python().parent.parent / "lib").glob("python*/site-packages")
    # Behind what is installed for this package, so that only AIStore's own modules come from there.
    (environment.packages / "z_aistore.pth").write_text(str(packages))
    script = f"""
import sys
from etl_server.payload import deserialize_class
cls = deserialize_class({payloads["that imports AIStore's helpers when it runs"]!r})
assert not [name for name in sys.modules if name.startswith("aistore.sdk.etl.webserver.fastapi")]
import aistore.sdk.etl.webserver.fastapi_server as real
import aistore.sdk.etl.etl
assert real.__file__ and not issubclass(cls, real.FastAPIServer)
from etl_server import ETLServer
assert issubclass(cls, ETLServer)
print(cls.__name__)
"""
    done = subprocess.run([environment.python, "-c", script], capture_output=True, text=True)
    assert done.stdout == "App\n", done.stderr


def test_what_else_of_aistore_a_class_uses_has_to_be_installed() -> None:
    script = "from aistore.sdk import Client\n" + BUFFERED.format(module="fastapi_server", base="FastAPIServer")
    script = script.replace("return", "Client\n        return")
    made = subprocess.run(
        [aistore_python(), "-c", MAKE], input=json.dumps({"a": script}), capture_output=True, text=True
    )
    with pytest.raises(PayloadError, match=r"module 'aistore\.sdk\.client' is not installed .* 'aistore' to PACKAGES"):
        deserialize_class(json.loads(made.stdout)["a"])


@pytest.mark.parametrize(
    ("name", "at_once"),
    [
        ("buffered, on FastAPIServer", 1),
        ("buffered, on FlaskServer", 1),
        ("buffered, on HTTPMultiThreadedServer", None),
        ("streaming", None),
    ],
)
def test_as_many_objects_are_transformed_at_once_as_by_aistores_servers(
    name: str, at_once: int | None, payloads: dict[str, str]
) -> None:
    assert deserialize_class(payloads[name]).max_concurrency == at_once


def test_a_class_that_says_how_many_objects_it_takes_at_once_is_believed() -> None:
    script = BUFFERED.format(module="fastapi_server", base="FastAPIServer") + "    max_concurrency = 7\n"
    made = subprocess.run(
        [aistore_python(), "-c", MAKE], input=json.dumps({"a": script}), capture_output=True, text=True
    )
    assert deserialize_class(json.loads(made.stdout)["a"]).max_concurrency == 7
