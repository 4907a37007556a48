"""Payloads of another version of Python: code that would end the process is told by its layout."""

from __future__ import annotations

import dis
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType, FunctionType

import cloudpickle  # type: ignore[import-untyped]
import pytest

from etl_server import ETLServer
from etl_server.errors import PayloadError
from etl_server.payload import deserialize_class, serialize_class

VERSIONS = [f"3.{minor}" for minor in range(10, 16) if minor != sys.version_info.minor]

# As AIStore's package pickles a class: its base by name, everything else by value.
MAKE = """
import base64, json, sys, types
name = "aistore.sdk.etl.webserver.fastapi_server"
for part in range(1, name.count(".") + 2):
    package = ".".join(name.split(".")[:part])
    sys.modules[package] = types.ModuleType(package)
class FastAPIServer: pass
FastAPIServer.__module__ = name
FastAPIServer.__qualname__ = "FastAPIServer"
sys.modules[name].FastAPIServer = FastAPIServer
import cloudpickle
texts = []
for body in json.load(sys.stdin):
    namespace = {"__name__": "__main__", "FastAPIServer": FastAPIServer}
    exec("class App(FastAPIServer):\\n    def transform(self, data, path, etl_args):\\n        " + body, namespace)
    texts.append(base64.b64encode(cloudpickle.dumps(namespace["App"])).decode())
print(json.dumps(texts))
"""

BODIES = [
    "return data.upper()",
    "return bytes(reversed(data))",
    "if len(data) > 3: raise ValueError(path)\n        return data",
    "return b''.join(bytes([x ^ 1]) for x in data)",
    "with open(path) as file: return file.read()",
    "import json; return json.dumps(etl_args).encode()",
    "self.count = getattr(self, 'count', 0) + 1; return data",
    "try:\n            return data[0:1]\n        finally:\n            print(path)",
    "x = [i for i in data if i != 10]; return bytes(x)",
    "return data + etl_args.encode()",
    "return (lambda: data * 2)()",
]


def interpreter(version: str) -> str | None:
    """An interpreter of a version: on the PATH, or of pyenv."""
    found = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


@pytest.mark.parametrize("version", VERSIONS)
def test_code_of_another_python_is_refused_before_it_runs(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    (tmp_path / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    done = subprocess.run(
        [python, "-c", MAKE],
        input=json.dumps(BODIES),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    for body, text in zip(BODIES, json.loads(done.stdout), strict=True):
        with pytest.raises(PayloadError, match="it was built with another version of Python, and here is 3") as raised:
            deserialize_class(text)
        assert "\n" not in str(raised.value), body


class Plain(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data


def with_code(code: CodeType) -> str:
    return serialize_class(type("Made", (Plain,), {"transform": FunctionType(code, {}, "transform")}))


def method(self: object, data: bytes, path: str, etl_args: str) -> bytes:
    return data.upper() + b"!"


def test_code_of_this_python_is_not_refused() -> None:
    assert deserialize_class(with_code(method.__code__))().transform(b"a", "", "") == b"A!"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="functions begin with no instruction of their own")
def test_code_that_does_not_begin_as_a_function_does_is_refused() -> None:
    content = method.__code__.co_code
    resume = dis.opmap["RESUME"]
    (offset,) = [index for index in range(0, len(content), 2) if content[index] == resume]
    code = method.__code__.replace(co_code=content[:offset] + content[offset + 2 :])
    with pytest.raises(PayloadError, match="another version of Python"):
        deserialize_class(with_code(code))


def test_a_class_may_still_tell_code_from_other_objects() -> None:
    cls = type(
        "Made",
        (Plain,),
        {"kind": CodeType, "transform": lambda self, *_: b"%d" % isinstance(compile("1", "", "eval"), self.kind)},
    )
    assert deserialize_class(serialize_class(cls))().transform(b"", "", "") == b"1"
